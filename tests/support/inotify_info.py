"""inotify-info of a newer Debian than this machine's, a peer for `irmapdb ps`."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from tests.support import packages
from tests.support.packages import RigError
from tests.support.programs import ProgramError, run

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["inotify_info"]

_SUITE = "trixie"
_LAYOUT = 1


def inotify_info() -> Path:
    """The program; RigError if it cannot be installed or does not start."""
    cache = packages.cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    top = cache / f"inotify-info-{_SUITE}-{platform.machine()}-{_LAYOUT}"
    with packages.locked(cache):
        try:
            _check(top)
        except RigError:
            _fetch(top)
    return _program(top)


def _program(top: Path) -> Path:
    return top / "bin" / "inotify-info"


def _check(top: Path) -> None:
    try:
        run(_program(top), "--version")
    except (OSError, ProgramError) as error:
        message = f"{top} does not work: {error}"
        raise RigError(message) from error


def _fetch(top: Path) -> None:
    try:
        with packages.built_aside(top, _check) as (aside, state):
            packages.write_sources(state, [_SUITE])
            run("apt-get", *packages.apt_options(state), "update")
            packages.extract(state, ["inotify-info"], aside)
            packages.write_wrappers(aside, ["inotify-info"])
    except ProgramError as error:
        message = f"cannot get inotify-info of Debian {_SUITE}: {error}"
        raise RigError(message) from error
