"""Checks whether the crun of this machine gives a configuration file to CRIU.

crun 1.28 does so, 1.21 does not. It calls criu_set_config_file() of libcriu (since CRIU 4.2), and
looks up the function by its name. So this module searches both files for the name.
"""

from __future__ import annotations

import ctypes
import mmap
import shutil
from pathlib import Path

from irmapdb.model import printable

__all__ = ["why_not_read"]

_FUNCTION = "criu_set_config_file"
_LIBRARY = "libcriu.so.2"


def why_not_read(library: str = _LIBRARY) -> str:
    """Why the crun on PATH reads no configuration of CRIU; empty if it does, or does not exist."""
    found = shutil.which("crun")
    if found is None:
        return ""
    name = printable(Path(found))
    try:
        if not _mentions(found, _FUNCTION.encode()):
            return f"{name} is too old to read a configuration file of CRIU, or built without CRIU"
    except (OSError, ValueError):  # ValueError: an empty file
        return f"{name} cannot be read, so whether it reads the file is not known"
    try:
        known = hasattr(ctypes.CDLL(library), _FUNCTION)
    except OSError:
        return f"{name} finds no {library}, without which it makes no checkpoint"
    old = f"{library} is older than CRIU 4.2, so that {name} reads no configuration file of CRIU"
    return "" if known else old


def _mentions(program: str, word: bytes) -> bool:
    with open(program, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return text.find(word) >= 0
