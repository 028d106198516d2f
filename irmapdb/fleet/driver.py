"""Imports psycopg, which only the extra `irmapdb[fleet]` installs."""

from __future__ import annotations

from irmapdb.errors import FleetError

try:
    import psycopg
except ImportError as error:
    raise FleetError(
        f"psycopg cannot be used: {error}", advice="run `pip install 'irmapdb[fleet]'`"
    ) from error

__all__ = ["psycopg"]
