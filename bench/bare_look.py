"""Measures the kernel's time for one look at containers: started as a script.

    bare_look.py PID… < /dev/null

Prints the CPU time in seconds of the calls that each look needs: the tasks of the machine
and their mount namespaces; of each task of a container its stat, mount table, cgroup and
descriptors, and the fdinfo of those that watch. Nothing is parsed or compared.
"""

from __future__ import annotations

import os
import sys
import time


def main() -> None:
    """Once to warm up, once to measure."""
    pids = sys.argv[1:]
    _look(pids)
    begun = time.process_time()
    _look(pids)
    sys.stdout.write(f"{time.process_time() - begun}\n")


def _look(pids: list[str]) -> None:
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                os.readlink(f"/proc/{name}/ns/mnt")
            except OSError:
                continue
    for pid in pids:
        for name in ("stat", "mountinfo", "cgroup"):
            _read(f"/proc/{pid}/{name}")
        for fd in os.listdir(f"/proc/{pid}/fd"):
            if os.readlink(f"/proc/{pid}/fd/{fd}") == "anon_inode:inotify":
                _read(f"/proc/{pid}/fdinfo/{fd}")


def _read(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    while os.read(fd, 1 << 20):
        pass
    os.close(fd)


if __name__ == "__main__":
    main()
