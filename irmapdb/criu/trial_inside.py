"""The inside of `irmapdb hook --try`: the first process of a pid namespace, in its own mounts.

trial_inside.py DIRECTORY CRIU OPTION…

It prints a JSON line for each step. The options are for both calls of CRIU.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["main"]

_STEP_LIMIT_S = 60.0
_EVENT_LIMIT_S = 10.0
_SIZE = "size=256m,mode=700"

# The process that is dumped: it watches a file, and adds a line to another one at each event.
_TASK = """
import ctypes, os, sys
watched, heard, ready = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
fd = libc.inotify_init1(os.O_CLOEXEC)
if fd < 0 or libc.inotify_add_watch(fd, os.fsencode(watched), 8) < 0:
    sys.exit(os.strerror(ctypes.get_errno()))
os.close(os.open(ready, os.O_CREAT | os.O_WRONLY, 0o600))
while os.read(fd, 4096):
    out = os.open(heard, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    os.write(out, b"event\\n")
    os.close(out)
"""
"""8 is IN_CLOSE_WRITE of inotify(7)."""


class _FailedError(Exception):
    """A step that failed, with its text and CRIU's log."""

    def __init__(self, text: str, log: Path | None = None) -> None:
        super().__init__(text)
        self.log = log


def main(directory: str, criu: str, *options: str) -> int:
    """Do all steps; the exit code."""
    threading.Thread(target=_end_with_input, daemon=True).start()
    os.environ.pop("PYTHONPATH", None)
    os.environ["IRMAPDB_HOOK_DB"] = os.path.join(directory, "databases")  # which goes with it
    trial = _Trial(Path(directory), criu, options)
    for name, step in (
        ("watch", trial.watch),
        ("dump", trial.dump),
        ("hook", trial.find_hook),
        ("restore", trial.restore),
        ("event", trial.hear),
    ):
        begun_s = time.monotonic()
        try:
            text, passed, log = step(), True, None
        except _FailedError as error:
            text, passed, log = str(error), False, error.log
        except (OSError, subprocess.SubprocessError) as error:
            text, passed, log = f"{type(error).__name__}: {error}", False, None
        took_s = round(time.monotonic() - begun_s, 3)
        _tell({"name": name, "passed": passed, "took_s": took_s, "text": text})
        if not passed:
            _tell({"log": _errors(log)})
            return 1
    return 0


def _tell(document: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def _end_with_input() -> None:
    # The end of this process is the end of its pid namespace.
    while os.read(0, 4096):
        pass
    os._exit(1)


def _errors(log: Path | None) -> list[str]:
    if log is None or not log.exists():
        return []
    lines = log.read_text("utf-8", "replace").splitlines()
    wanted = ("Error", "Warn", "irmapdb-hook:")
    return [line for line in lines if any(word in line for word in wanted)] or lines[-10:]


class _Trial:
    def __init__(self, top: Path, criu: str, options: tuple[str, ...]) -> None:
        self._top = top
        self._criu = criu
        self._options = options
        self._images = top / "images"
        self._watched = top / "merged" / "watched"
        self._heard = top / "heard"
        self._pid = 0

    def watch(self) -> str:
        """Mount, and start the process."""
        own = {path.name: path.read_bytes() for path in self._top.iterdir()}
        _run("mount", "-t", "proc", "proc", "/proc")
        _run("mount", "-t", "tmpfs", "-o", _SIZE, "tmpfs", self._top)
        # Else the hook would take this directory for a leftover (irmapdb.scratch).
        fcntl.flock(os.open(self._top, os.O_RDONLY | os.O_CLOEXEC), fcntl.LOCK_EX)
        for name, content in own.items():
            (self._top / name).write_bytes(content)
            (self._top / name).chmod(0o700)
        for name in ("lower", "upper", "work", "merged", "images"):
            (self._top / name).mkdir(mode=0o700)
        (self._top / "lower" / "watched").write_bytes(b"content\n")
        layers = [f"{key}dir={self._top}/{key}" for key in ("lower", "upper", "work")]
        options = ",".join(layers)
        _run("mount", "-t", "overlay", "-o", options, "overlay", self._top / "merged")
        ready = self._top / "ready"
        task = subprocess.Popen(  # noqa: S603 our own
            [sys.executable, "-ISc", _TASK, self._watched, self._heard, ready],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._pid = task.pid
        _await(lambda: ready.exists() or task.poll() is not None, _STEP_LIMIT_S)
        if not ready.exists():
            raise _FailedError("the process with the watch did not start")
        return "a process watches a file on an overlay"

    def dump(self) -> str:
        """Dump it, and let it end."""
        self._call("dump", "--tree", str(self._pid))
        os.waitpid(self._pid, 0)
        return "CRIU dumped the process"

    def find_hook(self) -> str:
        """The line that the hook has written into CRIU's log."""
        log = self._images / "dump.log"
        for line in log.read_text("utf-8", "replace").splitlines():
            head, found, text = line.partition("irmapdb-hook: ")
            if found and not head.strip():
                if text.startswith("not done"):
                    raise _FailedError(text, log)
                return text
        raise _FailedError("CRIU did not call the hook", log)

    def restore(self) -> str:
        """Restore it."""
        self._call("restore", "--restore-detached")
        return "CRIU restored the process"

    def hear(self) -> str:
        """Write to the watched file, and wait for the report of the restored process."""
        with self._watched.open("ab") as file:
            file.write(b"more\n")
        _await(self._heard.exists, _EVENT_LIMIT_S)
        if not self._heard.exists():
            raise _FailedError("the restored watch reports no event", self._images / "restore.log")
        return "the restored watch reported an event"

    def _call(self, action: str, *flags: str) -> None:
        log = self._images / f"{action}.log"
        command = [self._criu, action, "-v4", "--log-file", log.name]
        command += ["--images-dir", os.fspath(self._images)]
        try:
            done = subprocess.run(  # noqa: S603 the program that the engines start
                [*command, *self._options, *flags],
                cwd="/",
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                timeout=_STEP_LIMIT_S,
            )
        except subprocess.TimeoutExpired as error:
            message = f"criu {action} did not end in {_STEP_LIMIT_S:g} s"
            raise _FailedError(message, log) from error
        if done.returncode != 0:
            said = done.stderr.decode("utf-8", "replace").strip().splitlines()
            # Without a log, CRIU has not even read its options.
            more = f": {said[-1]}" if said and not log.exists() else ""
            message = f"criu {action} ended with exit code {done.returncode}{more}"
            raise _FailedError(message, log)


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, check=False)  # noqa: S603 mount(8)
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip()
        message = f"{' '.join(map(str, command[:3]))}: {said}"
        raise _FailedError(message)


def _await(is_so: Callable[[], bool], limit_s: float) -> None:
    end_s = time.monotonic() + limit_s
    while not is_so() and time.monotonic() < end_s:
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
