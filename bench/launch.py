"""Run one command on one core and print its time and memory, as JSON: started as a script.

    launch.py CORE OUTPUT COMMAND…

A process of its own, because the kernel counts the memory of the process that starts a program
into that program's peak (setmax_mm_hiwater_rss() in fs/exec.c): this one stays small. OUTPUT
gets the command's stdout, and its stderr at the end.
"""

from __future__ import annotations

import json
import os
import sys
import time


def main() -> None:
    """Start, wait, print."""
    core, output, *command = sys.argv[1:]
    os.sched_setaffinity(0, {int(core)})
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, output, flags, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    start = time.perf_counter()
    pid = os.posix_spawnp(command[0], command, os.environ, file_actions=actions)
    _, status, usage = os.wait4(pid, 0)
    wall = time.perf_counter() - start
    json.dump(
        {
            "wall_s": wall,
            "user_s": usage.ru_utime,
            "system_s": usage.ru_stime,
            "peak_bytes": usage.ru_maxrss * 1024,
            "code": os.waitstatus_to_exitcode(status),
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
