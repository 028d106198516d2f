"""Imports psycopg, which only the extra `irmapdb[fleet]` installs."""

from __future__ import annotations

from irmapdb.errors import FleetError
from irmapdb.extras import install_extra

try:
    import psycopg
except ImportError as error:
    message = f"psycopg cannot be used: {error}"
    raise FleetError(message, advice=install_extra("fleet")) from error

__all__ = ["psycopg"]
