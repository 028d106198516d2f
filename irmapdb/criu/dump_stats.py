"""Reads `stats-dump`, which CRIU writes into its work dir at the end of a dump."""

from __future__ import annotations

import os

from irmapdb import files
from irmapdb.errors import IrmapError
from irmapdb.image.stats import decode_stats

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["read_dump_stats"]

_LIMIT_BYTES = 1 << 16
_TICK_S = 0.01
"""The time stamps of files are this much behind the clock, with CONFIG_HZ=100."""


def read_dump_stats(work_dir: bytes, since_s: float) -> Mapping[str, int]:
    """The figures of `CriuStats`; {} unless CRIU wrote a readable file after `since_s`.

    `since_s`: time.time() of a moment before this dump's end, and after that of any other.
    """
    path = os.path.join(work_dir, b"stats-dump")
    try:
        if os.stat(path).st_mtime < since_s - _TICK_S:
            return {}
        data = files.read_if_there(path, limit_bytes=_LIMIT_BYTES)
        return {} if data is None else decode_stats(data, "stats-dump").figures
    except (IrmapError, OSError):
        return {}
