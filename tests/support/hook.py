"""irmapdb-hook as CRIU executes it: the installed program, or one like it for a bare checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "CHECKOUT",
    "RUNC_CONF",
    "action_script",
    "hook_command",
    "hook_program",
    "installed_for_runc",
    "log_until_stored",
    "make_executable",
    "start_as_criu",
]

CHECKOUT = Path(__file__).parent.parent.parent
RUNC_CONF = Path("/etc/criu/runc.conf")
"""CRIU's configuration file under runc, and under podman."""

_PROGRAM = """\
#!{python}
import sys

sys.path.insert(0, {checkout!r})
from irmapdb.criu.hook import main

if __name__ == "__main__":
    sys.exit(main())
"""


def hook_program(directory: Path) -> Path:
    """The irmapdb-hook beside this Python, or one made in `directory`, as pip would make it."""
    installed = Path(sys.executable).with_name("irmapdb-hook")
    if installed.exists():
        return installed
    program = directory / "irmapdb-hook"
    program.write_text(_PROGRAM.format(python=sys.executable, checkout=str(CHECKOUT)))
    program.chmod(0o755)
    return program


def hook_command(program: Path, *arguments: str | Path) -> None:
    """Run `irmapdb hook`, which finds the program of the hook on PATH."""
    subprocess.run(
        [sys.executable, "-m", "irmapdb", "hook", *arguments],
        cwd=CHECKOUT,
        env={**os.environ, "PATH": os.pathsep.join((str(program.parent), os.environ["PATH"]))},
        check=True,
        stdout=subprocess.DEVNULL,
    )


@contextmanager
def installed_for_runc(directory: Path) -> Iterator[Path]:
    """The hook's script, switched on for runc by `irmapdb hook --install`, and off at the end."""
    program = hook_program(directory)
    script = directory / "libexec" / "irmapdb-hook"
    hook_command(program, "--install", "runc", "--script", script)
    try:
        yield script
    finally:
        hook_command(program, "--uninstall", "runc", "--script", script)


@contextmanager
def action_script(script: Path) -> Iterator[None]:
    """CRIU under runc calls this script, and nothing else."""
    before = RUNC_CONF.read_bytes() if RUNC_CONF.exists() else None
    RUNC_CONF.parent.mkdir(exist_ok=True)
    RUNC_CONF.write_text(f"action-script {script}\n")
    try:
        yield
    finally:
        if before is None:
            RUNC_CONF.unlink()
        else:
            RUNC_CONF.write_bytes(before)


def start_as_criu(
    script: Path,
    pid: int,
    work: Path,
    **options: Any,  # noqa: ANN401 as Popen takes them
) -> subprocess.Popen[str]:
    """Call the hook's script by a process of its own, which is CRIU: `work` is the cwd of both.

    `environment` adds variables. A program of `write_hook` leaves the file CALLED behind.
    """
    environment = {
        "CRTOOLS_SCRIPT_ACTION": "pre-dump",
        "CRTOOLS_INIT_PID": str(pid),
        "CALLED": str(work / "called"),
        **options.pop("environment", {}),
    }
    command = ["/bin/sh", "-c", '"$0"; exit $?', script]
    return subprocess.Popen(
        command, cwd=work, env=environment, stdin=subprocess.DEVNULL, text=True, **options
    )


def log_until_stored(work: Path, dumps: int = 1) -> list[str]:
    """The lines of irmapdb.log after this number of dumps was stored, or failed to be.

    CRIU has its answer before that.
    """
    until = time.monotonic() + 60
    while True:
        log = work / "irmapdb.log"
        lines = log.read_text().splitlines() if log.exists() else []
        if sum("] stored in " in line or "] not stored" in line for line in lines) >= dumps:
            return lines
        assert time.monotonic() < until, lines
        time.sleep(0.01)


def make_executable(directory: Path, name: str = "irmapdb-hook") -> Path:
    """A program that does nothing, which CRIU could execute."""
    program = directory / name
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return program
