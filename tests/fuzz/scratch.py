"""Directories for targets that need files."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

__all__ = ["scratch"]

_SHARED_MEMORY = Path("/dev/shm")
_KEPT: list[tempfile.TemporaryDirectory[str]] = []


def scratch() -> Path:
    """A directory that goes with this process; in memory where there is some."""
    parent = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else None
    # Not `irmapdb-…`: what is named so is a leftover, which any run of irmapdb removes.
    kept = tempfile.TemporaryDirectory(prefix="fuzz.", dir=parent)
    _KEPT.append(kept)
    return Path(kept.name)
