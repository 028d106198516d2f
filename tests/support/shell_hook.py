"""The script that CRIU executes, run by a shell, and a service that the test plays."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from irmapdb.criu import hook_script
from irmapdb.kernel.proc.tasks import read_task
from tests.support.features import require_program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SHELLS = ("dash", "bash", "busybox")
LINE = "irmapdb-hook: not done: "


def read_starttime(pid: int) -> int:
    """The start time of a process that runs."""
    task = read_task(pid)
    assert task is not None
    return task.starttime


class Hook:
    """The script in `directory`, executed by `shell` as /bin/sh; a program in place of ours."""

    def __init__(self, directory: Path, shell: str, program_name: str = "program") -> None:
        require_program(shell)
        self.run_dir = directory / "run"
        self.work = directory / "work"
        self.work.mkdir()
        self.config = directory / "irmapdb.toml"
        self.program = directory / program_name
        self.started = directory / "started"
        shell_link = directory / "sh"
        shell_link.symlink_to(str(shutil.which(shell)))
        text = hook_script.script_text(
            self.program, [Path("/etc/criu/x.conf")], config_file=self.config, run=self.run_dir
        )
        assert text.startswith(b"#!/bin/sh\n")
        self.script = directory / "irmapdb-hook"
        self.script.write_bytes(text.replace(b"/bin/sh", os.fsencode(shell_link)))
        self.script.chmod(0o755)

    def write_program(self, body: str = "exit 0") -> None:
        self.program.write_text(f"#!/bin/sh\necho started >>{self.started}\n{body}\n")
        self.program.chmod(0o755)

    def starts(self) -> int:
        return len(self.started.read_text().split()) if self.started.exists() else 0

    def __call__(
        self,
        action: str = "pre-dump",
        pid: int | str | None = None,
        before: Callable[[], object] = lambda: None,
        **environment: str,
    ) -> subprocess.CompletedProcess[str]:
        """Call it; `before` runs first in the process that executes it."""
        # As podman has CRIU call it: no HOME, no PATH, standard input closed.
        variables = {"CRTOOLS_SCRIPT_ACTION": action, **environment}
        variables["CRTOOLS_INIT_PID"] = str(os.getpid() if pid is None else pid)
        return subprocess.run(
            [self.script],
            cwd=self.work,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            preexec_fn=lambda: (os.close(0), before()),
        )

    def forget(self) -> None:
        for mark in self.run_dir.glob("hook-*"):
            mark.unlink()


FAILURES: dict[str, Callable[[Path], None]] = {
    "missing": lambda program: program.unlink(),
    "not executable": lambda program: program.chmod(0o644),
    "a directory": lambda program: (program.unlink(), program.mkdir()),
    "no interpreter": lambda program: program.write_text("#!/no/such/python\n"),
    "import": lambda program: program.write_text(
        "#!/bin/sh\necho 'Traceback'\necho 'No module'\nexit 1\n"
    ),
    "killed": lambda program: program.write_text("#!/bin/sh\nkill -9 $$\n"),
}
"""Damages of the program, by name."""


@contextlib.contextmanager
def service(hook: Hook, reply: str | None) -> Iterator[list[list[str]]]:
    """Replies to each request with this line; None: it reads them and says nothing."""
    hook.run_dir.mkdir(mode=0o700, exist_ok=True)
    fifo = hook.run_dir / "warm.fifo"
    os.mkfifo(fifo, 0o600)
    pid = os.getpid()
    (hook.run_dir / "warm.pid").write_text(f"{pid} {read_starttime(pid)}\n")
    requests: list[list[str]] = []
    listen = os.open(fifo, os.O_RDWR)

    def serve() -> None:
        while (line := os.read(listen, 4096)) != b"end\n":
            requests.append(line.decode().rstrip("\n").split(" "))
            if reply is not None:
                fd = os.open(hook.run_dir / requests[-1][-1], os.O_WRONLY | os.O_NONBLOCK)
                os.write(fd, f"{reply}\n".encode())
                os.close(fd)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield requests
    finally:
        os.write(listen, b"end\n")
        thread.join()
        os.close(listen)
        fifo.unlink()


class Searching:
    """A service of the test that takes one request, and replies step by step."""

    def __init__(self, hook: Hook) -> None:
        hook.run_dir.mkdir(mode=0o700)
        self._fifo = hook.run_dir / "warm.fifo"
        os.mkfifo(self._fifo, 0o600)
        self._listen = os.open(self._fifo, os.O_RDWR)
        (hook.run_dir / "warm.pid").write_text(f"{os.getpid()} {read_starttime(os.getpid())}\n")
        self.script = subprocess.Popen(
            [hook.script],
            cwd=hook.work,
            env={"CRTOOLS_SCRIPT_ACTION": "pre-dump", "CRTOOLS_INIT_PID": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        name = os.read(self._listen, 4096).decode().split()[-1]
        self.reply = hook.run_dir / name
        self._to_script = os.open(self.reply, os.O_WRONLY | os.O_NONBLOCK)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._to_script)
        os.close(self._listen)
        if self.script.poll() is None:
            self.script.kill()
        self.script.communicate()

    def say(self, line: str) -> None:
        os.write(self._to_script, f"{line}\n".encode())

    def wait_for_sleep(self, other_than: int = 0) -> int:
        """The process that ends the wait of the script."""
        children = Path(f"/proc/{self.script.pid}/task/{self.script.pid}/children")
        end_s = time.monotonic() + 60
        while time.monotonic() < end_s:
            for pid in map(int, children.read_text().split()):
                with contextlib.suppress(OSError):
                    comm = Path(f"/proc/{pid}/comm").read_text().strip()
                    if comm in {"sleep", "busybox"} and pid != other_than:
                        return pid
        raise AssertionError("the script waits for nothing")
