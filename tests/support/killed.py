"""A database as a writer in rollback mode leaves it that is killed while it writes the file."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["kill_a_writer"]


def kill_a_writer(path: Path, killed: Path) -> None:
    """Copy the database at `path` to `killed` in the middle of a transaction."""
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("PRAGMA journal_mode = DELETE")
        raw.execute("PRAGMA cache_size = 1")  # so that the file itself is written before the end
        raw.execute("PRAGMA cache_spill = 1")
        raw.execute("BEGIN")
        raw.execute("DELETE FROM image_entry")
        rows = [(str(number),) for number in range(9999)]
        raw.executemany("INSERT INTO image_seen VALUES (?, 1, 1, 1, 1)", rows)
        for suffix in ("", "-journal"):
            shutil.copyfile(f"{path}{suffix}", f"{killed}{suffix}")
    assert killed.read_bytes() != path.read_bytes()
