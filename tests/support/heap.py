"""SQLite's limit of memory, which belongs to the process and not to a connection.

`irmapdb sql` sets it for its own process. Tests run commands in theirs, and a PRAGMA only lowers
it:
https://www.sqlite.org/c3ref/hard_heap_limit64.html.
"""

from __future__ import annotations

import ctypes
import sqlite3  # noqa: F401 loads the library
from functools import cache

__all__ = ["lift_heap_limit"]


@cache
def _library() -> ctypes.CDLL | None:
    with open("/proc/self/maps", encoding="utf-8") as maps:
        names = (line.split()[-1] for line in maps if "libsqlite3" in line)
        name = next(names, None)
    return None if name is None else ctypes.CDLL(name)


def lift_heap_limit() -> None:
    """Let SQLite take any memory again, where Python uses the system's library."""
    library = _library()
    if library is not None:
        library.sqlite3_hard_heap_limit64(ctypes.c_int64(0))
