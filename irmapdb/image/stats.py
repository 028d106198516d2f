"""Decodes `stats-dump` and `stats-restore`: the figures that CRIU writes into its work dir."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from irmapdb._pb.stats_pb2 import StatsEntry
from irmapdb.errors import ImageError
from irmapdb.image.framing import frames, image_error
from irmapdb.image.magic import STATS
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from google.protobuf.message import Message

__all__ = ["CriuStats", "decode_stats"]

_TIMES = {
    "freezing_time": "freezing_us",
    "frozen_time": "frozen_us",
    "memdump_time": "memdump_us",
    "memwrite_time": "memwrite_us",
    "irmap_resolve": "irmap_resolve_us",
    "forking_time": "forking_us",
    "restore_time": "restore_us",
}
"""CRIU's name of each time, and its name with the unit. The other fields are numbers of pages."""


class CriuStats(Record):
    """The figures of one dump or restore."""

    of: str
    """`dump` or `restore`."""
    figures: dict[str, int]
    """Those that the file has: times in microseconds (`frozen_us`), numbers of pages
    (`pages_written`)."""


def decode_stats(data: bytes, name: str) -> CriuStats:
    """The figures of a `stats-dump` or `stats-restore`; `name` stands for the file in errors.

    Raises ImageError for an image that is damaged or another one. Figures of a newer CRIU are left
    out.
    """
    for offset, message in frames(data, name, STATS):
        try:
            entry = StatsEntry.FromString(message)
        except DecodeError:
            raise image_error(name, offset, "entry 0: not a protobuf message") from None
        if not entry.IsInitialized():
            raise image_error(name, offset, "entry 0: a required field is missing")
        if entry.HasField("dump"):
            return CriuStats("dump", _figures(entry.dump))
        if entry.HasField("restore"):
            return CriuStats("restore", _figures(entry.restore))
        raise image_error(name, offset, "entry 0: neither of a dump nor of a restore")
    raise ImageError(f"{name}: no figures", advice="look into CRIU's log: the dump has not ended")


def _figures(entry: Message) -> dict[str, int]:
    return {_TIMES.get(field.name, field.name): value for field, value in entry.ListFields()}
