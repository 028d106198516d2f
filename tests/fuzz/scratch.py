"""Directories for targets that need files."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

__all__ = ["PARENT", "scratch", "scratch_parent"]

PARENT = "IRMAPDB_FUZZ_SCRATCH"
"""The variable that names a directory which the caller removes: libFuzzer ends a process without
giving Python a moment to tidy."""

_SHARED_MEMORY = Path("/dev/shm")
_KEPT: list[tempfile.TemporaryDirectory[str]] = []


def scratch_parent() -> tempfile.TemporaryDirectory[str]:
    """A directory in memory, where there is some."""
    parent = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else None
    # Not `irmapdb-…`: any run of irmapdb removes leftovers with such a name.
    return tempfile.TemporaryDirectory(prefix="fuzz.", dir=parent)


def scratch() -> Path:
    """A directory that is removed with this process, or with its parent."""
    given = os.environ.get(PARENT)
    if given:
        return Path(tempfile.mkdtemp(dir=given))
    _KEPT.append(scratch_parent())
    return Path(_KEPT[-1].name)
