"""Detects the form of a file (image, JSON, database) from its content, not from its name."""

from __future__ import annotations

import enum

from irmapdb.errors import ImageError
from irmapdb.image.magic import HEADER, IRMAP_CACHE, SQLITE_HEADER, describe

__all__ = ["Format", "sniff"]


class Format(enum.StrEnum):
    """The forms that `sniff` detects."""

    PB = "pb"
    """CRIU's own `irmap-cache`."""
    DB = "db"
    """irmapdb's SQLite database."""
    JSON = "json"
    """crit's JSON of the image."""


def sniff(prefix: bytes, name: str) -> Format:
    """The format of a file that starts with `prefix`; `name` stands for the file in errors.

    It reads only as much as necessary: a JSON text need not be crit's, and the image need not be
    whole. Raises ImageError with the apparent type if the file is none of the three.
    """
    if prefix.startswith(SQLITE_HEADER):
        return Format.DB
    if prefix.startswith(HEADER.pack(*IRMAP_CACHE)):
        return Format.PB
    if prefix.lstrip(b" \t\r\n").startswith(b"{"):
        return Format.JSON
    raise ImageError(
        f"{name} is {describe(prefix)}",
        advice="give an irmap-cache, its JSON, a database, an image of watches, or an archive",
    )
