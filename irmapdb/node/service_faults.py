"""Looks for faults of the service `irmapdb warm`: it was killed, is stopped, or does not answer.

It asks the service as the script of the hook does. The request is about this very process, which is
no container: the service refuses it at once.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import time
from pathlib import Path

from irmapdb.criu import config_files
from irmapdb.criu.hook_script import SCRIPT_PATH
from irmapdb.errors import FileError
from irmapdb.kernel.proc import tasks
from irmapdb.kernel.syscalls import Descriptor
from irmapdb.node.rundir import RUN_DIRECTORY, RunDirectory
from irmapdb.node.service_lock import ServiceLock
from irmapdb.node.unit import UNIT_DIRECTORY, UNIT_NAME
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from irmapdb.model import AnyPath

__all__ = ["DoctorOptions", "Finding", "ServiceState", "ask_service", "look_at_service"]

_OLD_INTERVALS = 5
_OLD_S = 600.0
_REPLY_BYTES = 4096
_BOOTED = Path("/run/systemd/system")


class DoctorOptions(Record):
    """The places to look at."""

    criu_dir: Path = config_files.DIRECTORY
    script: Path = SCRIPT_PATH
    run: Path = RUN_DIRECTORY
    config: AnyPath | None = None
    """The configuration of irmapdb; None: /etc/irmapdb.toml, if it exists."""
    unit_dir: Path = UNIT_DIRECTORY
    root: Path = Path("/")
    """The root of the configuration of the engines."""


class Finding(Record):
    """A fault, and the command that mends it. Both are printable."""

    about: str
    """`annotation`, `config`, `criu`, `crun`, `engines`, `hook-line`, `last-run`, `rights`,
    `script` or `service`."""
    text: str
    command: str


class ServiceState(Record):
    """The service `irmapdb warm`."""

    pid: int | None
    """None if it does not run."""
    replied_s: float | None
    """None if it did not reply."""
    containers: int
    looked_at_s: float | None
    """time.time() when it wrote its status."""


def look_at_service(options: DoctorOptions) -> tuple[ServiceState, list[Finding]]:
    """The service, and its fault, if it has one. It asks the service."""
    lock = ServiceLock(options.run)
    pid = lock.running()
    document = {}
    with contextlib.suppress(FileError):
        document = RunDirectory(options.run, make=False).read_status() or {}
    written, interval = document.get("written_at"), document.get("interval_s")
    looked_at_s = float(written) if isinstance(written, int | float) else None
    if pid is None:
        fault = _ended(options, lock)
        return ServiceState(None, None, 0, looked_at_s), [] if fault is None else [fault]
    replied_s = None
    with contextlib.suppress(OSError):
        replied_s = ask_service(options.run)
    containers = document.get("containers")
    number = len(containers) if isinstance(containers, list) else 0
    state = ServiceState(pid, replied_s, number, looked_at_s)
    fault = _slow(options, state, interval if isinstance(interval, int | float) else 60.0)
    return state, [] if fault is None else [fault]


def ask_service(run: Path, wait_s: float = 5.0) -> float | None:
    """The seconds until the service replied; None if it did not reply in time. OSError."""
    me = tasks.require_task(os.getpid())
    name = f"reply-{me.pid}-{me.starttime}"
    reply = run / name
    begun_s = time.monotonic()
    os.mkfifo(reply, 0o600)
    try:
        # Also for writing: else it would be at its end at once.
        flags = os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        with Descriptor(os.open(reply, flags)) as fd:
            line = f"1 pre-dump {me.pid} {me.pid} {me.starttime} - {name}\n"
            if not ServiceLock(run).request(line.encode()):
                return None
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            if not poll.poll(wait_s * 1000) or not os.read(fd, _REPLY_BYTES):
                return None
    finally:
        reply.unlink(missing_ok=True)
    return time.monotonic() - begun_s


def _ended(options: DoctorOptions, lock: ServiceLock) -> Finding | None:
    if _BOOTED.is_dir() and (options.unit_dir / UNIT_NAME).exists():
        text = f"{UNIT_NAME} is installed, and does not run"
    elif lock.has_ended():
        text = "the service was killed: it left its files, and does not run"
    else:
        return None
    return Finding("service", text, _start(options))


def _slow(options: DoctorOptions, state: ServiceState, interval_s: float) -> Finding | None:
    pid = state.pid
    task = None if pid is None else tasks.read_task(pid)
    if pid is None or task is None:
        return None
    text = f"the service, process {pid}, does not answer"
    if state.replied_s is None:
        if task.state in {"T", "t"}:
            return Finding("service", f"{text}: it is stopped", f"kill -CONT {pid}")
        return Finding("service", text, _restart(options, pid))
    age_s = 0.0 if state.looked_at_s is None else time.time() - state.looked_at_s
    if age_s > max(_OLD_INTERVALS * interval_s, _OLD_S):
        text = f"the service, process {pid}, has read no container for {age_s / 60:.0f} min"
        return Finding("service", text, _restart(options, pid))
    return None


def _start(options: DoctorOptions) -> str:
    if _BOOTED.is_dir():
        has_unit = (options.unit_dir / UNIT_NAME).exists()
        return f"systemctl restart {UNIT_NAME}" if has_unit else "irmapdb warm --install"
    words = ["irmapdb", "warm"]
    if options.run != RUN_DIRECTORY:
        words += ["--run-dir", os.fspath(options.run)]
    if options.config is not None:
        words += ["--config", os.fsdecode(options.config)]
    return f"setsid {shlex.join(words)} </dev/null >/dev/null 2>&1 &"


def _restart(options: DoctorOptions, pid: int) -> str:
    if _BOOTED.is_dir() and (options.unit_dir / UNIT_NAME).exists():
        return f"systemctl restart {UNIT_NAME}"
    return f"kill {pid}; sleep 1; {_start(options)}"
