"""Reads `stats-dump`, which CRIU writes into its work dir at the end of a dump.

A work dir may have the file of an earlier dump, so its time decides whether it is of the dump that
is asked about.
"""

from __future__ import annotations

import os

from irmapdb import files
from irmapdb.errors import IrmapError
from irmapdb.image.stats import decode_stats
from irmapdb.model import printable
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["DumpStats", "read_dump_stats"]

_LIMIT_BYTES = 1 << 16
_TICK_S = 0.01
"""The time stamps of files are this much behind the clock, with CONFIG_HZ=100."""


class DumpStats(Record):
    """The figures of one dump."""

    figures: Mapping[str, int]
    """As in `CriuStats`; {} if there is no file of this dump."""
    problem: str = ""
    """Why the file of this dump cannot be read; "" if it can, or if there is none."""


def read_dump_stats(work_dir: bytes, since_s: float, until_s: float | None = None) -> DumpStats:
    """The figures of the dump that ended between two moments, as time.time().

    `since_s`: before this dump's end, and after that of any other; `until_s`: None for now.
    """
    path = os.path.join(work_dir, b"stats-dump")
    try:
        written_s = os.stat(path).st_mtime + _TICK_S
        if written_s < since_s or (until_s is not None and written_s > until_s):
            return DumpStats({})
        data = files.read_whole(path, limit_bytes=_LIMIT_BYTES)
        return DumpStats(decode_stats(data, printable(path)).figures)
    except IrmapError as error:
        return DumpStats({}, str(error))
    except OSError:  # there is none, or it may not be looked at
        return DumpStats({})
