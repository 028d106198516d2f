"""Dumps and restores a small process of its own, with the hook as CRIU's configuration has it.

All of it happens in a new mount namespace and a new pid namespace, below a temporary directory: a
tmpfs with an overlay, a process with a watch on a file of this overlay, the images. If the first
process of the pid namespace ends, the kernel kills all others, and the mounts go with the last of
them. That process ends with its standard input, so also if this one is killed. No engine is asked.

Sources: unshare(1), pid_namespaces(7), criu(8).
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path

from irmapdb.criu import config_files, hook_script
from irmapdb.criu.engines import which
from irmapdb.criu.hook_script import SCRIPT_PATH
from irmapdb.criu.usable import find_criu, how_to_install
from irmapdb.errors import FileError
from irmapdb.model import printable
from irmapdb.record import Record
from irmapdb.scratch import scratch_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from irmapdb.criu.usable import CriuProgram

__all__ = ["Trial", "TrialOptions", "TrialStep", "try_checkpoint"]

_LIMIT_S = 150.0
_ROOM_BYTES = 64 << 20
_LOG_LINES = 20
_LINE_CHARACTERS = 300


class TrialOptions(Record):
    """The places of the hook."""

    criu_dir: Path = config_files.DIRECTORY
    script: Path = SCRIPT_PATH


class TrialStep(Record):
    """One step: `watch`, `dump`, `hook`, `restore` or `event`. The text is printable."""

    name: str
    passed: bool
    took_s: float
    text: str


class Trial(Record):
    """The result."""

    passed: bool
    """Whether the restored watch has reported an event."""
    called_by: str
    """The configuration file that names the hook; "" if none does, and the trial named it."""
    steps: tuple[TrialStep, ...]
    """Up to the first one that failed."""
    log: tuple[str, ...]
    """The errors in CRIU's log; () if all passed."""


def try_checkpoint(options: TrialOptions) -> Trial:
    """Dump and restore.

    FileError if a program is missing, CRIU does not work on this kernel, or there is no place.
    """
    criu = _usable_criu()
    unshare = _program("unshare", "install util-linux")
    _program("mount", "install util-linux")
    with scratch_directory("trial", room_bytes=_ROOM_BYTES) as scratch:
        called_by, arguments = _hook_arguments(options, Path(os.fsdecode(scratch)))
        command = [
            os.fspath(unshare),
            *("--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"),
            *(sys.executable, "-m", "irmapdb.criu.trial_inside"),
            *(os.fsdecode(scratch), os.fspath(criu.path), *arguments),
        ]
        said, why = _run(command)
    steps, log = _parsed(said)
    if why:
        steps = (*steps, TrialStep("trial", passed=False, took_s=_LIMIT_S, text=why))
    passed = bool(steps) and all(one.passed for one in steps) and steps[-1].name == "event"
    return Trial(passed, called_by, steps, () if passed else log)


def _usable_criu() -> CriuProgram:
    criu = find_criu()
    if criu is None:
        raise FileError("no criu is on PATH", advice=how_to_install(None))
    if criu.why_not:
        raise FileError(criu.fault, advice=how_to_install(criu))
    return criu


def _program(name: str, advice: str) -> Path:
    found = which(name)
    if found is None:
        raise FileError(f"no {name} is on PATH", advice=advice)
    return found


def _hook_arguments(options: TrialOptions, scratch: Path) -> tuple[str, list[str]]:
    # The file that calls the hook, and the options that make CRIU read it.
    directory = options.criu_dir
    for name in ("default.conf", "runc.conf", "crun.conf"):
        file = directory / name
        if config_files.our_scripts(file, options.script):
            is_read_anyway = file == config_files.DIRECTORY / "default.conf"
            return str(file), [] if is_read_anyway else ["--config", str(file)]
    script = options.script
    if not script.exists():
        script = scratch / config_files.HOOK_NAME
        beside = Path(sys.executable).with_name(config_files.HOOK_NAME)
        program = beside if beside.is_file() else Path(sys.executable)
        script.write_bytes(hook_script.script_text(program, python=hook_script.find_python()))
        script.chmod(0o700)
    return "", ["--action-script", str(script)]


def _run(command: list[str]) -> tuple[bytes, str]:
    # The output, and why it was killed.
    packages = os.fspath(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (packages, os.environ.get("PYTHONPATH"))))
    with subprocess.Popen(  # noqa: S603 our own module, by its path
        command,
        env={**os.environ, "PYTHONPATH": path},
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        try:
            # Not communicate(), which closes the input.
            return _read(process), ""
        except subprocess.TimeoutExpired:
            return b"", f"did not end within {_LIMIT_S:g} s"
        finally:
            process.kill()


def _read(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None  # noqa: S101 a pipe
    end_s = time.monotonic() + _LIMIT_S
    said = b""
    while True:
        left_s = end_s - time.monotonic()
        if left_s <= 0:
            raise subprocess.TimeoutExpired(process.args, _LIMIT_S)
        if not select.select([process.stdout], [], [], left_s)[0]:
            continue
        part = os.read(process.stdout.fileno(), 1 << 16)
        if not part:
            return said
        said += part


def _parsed(said: bytes) -> tuple[tuple[TrialStep, ...], tuple[str, ...]]:
    steps, log = [], []
    for line in said.decode("utf-8", "replace").splitlines():
        try:
            document = json.loads(line)
        except ValueError:
            log.append(line)  # a message of unshare or of Python
            continue
        if isinstance(document, dict) and "name" in document:
            text = printable(str(document["text"]).encode("utf-8", "replace"))
            steps.append(TrialStep(document["name"], document["passed"], document["took_s"], text))
        elif isinstance(document, dict):
            log += document["log"]
    return tuple(steps), tuple(_shown(log))


def _shown(lines: Iterable[str]) -> Iterable[str]:
    last = [*lines][-_LOG_LINES:]
    return (printable(line.strip().encode("utf-8", "replace"))[:_LINE_CHARACTERS] for line in last)
