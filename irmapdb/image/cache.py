"""Encodes and decodes `irmap-cache`, the image that CRIU loads before the freeze.

Facts from CRIU's criu/irmap.c and images/fh.proto, and from images that CRIU 4.2 wrote. The
order of the entries has a meaning: CRIU tries the last one of an inode first. Both directions
keep it, and keep duplicates.

Reading is strict: an entry must be exactly the bytes that CRIU would write for its three fields. So
no data is dropped, and an image is written back byte for byte.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError, EncodeError

from irmapdb._pb.cache_pb2 import IrmapCacheEntry
from irmapdb.errors import ImageError
from irmapdb.image.framing import DAMAGED, frames, image_error, join_frames
from irmapdb.image.magic import IRMAP_CACHE
from irmapdb.model import CacheEntry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["decode_cache", "encode_cache", "fits", "loadable", "misfit"]

_REFUSED = (
    "irmapdb does not drop data that it does not understand: look at the file with `crit "
    "decode`, remove it, or have it written again"
)


def _what_is_wrong(message: bytes) -> tuple[str, str]:
    # Decode slowly an entry that the fast loop of decode_cache could not decode, for the error.
    from google.protobuf.unknown_fields import UnknownFieldSet  # noqa: PLC0415 - seldom needed

    try:
        entry = IrmapCacheEntry.FromString(message)
    except DecodeError:
        return "not a protobuf message", DAMAGED
    required = [field.name for field in entry.DESCRIPTOR.fields]  # all of them are
    if missing := [field for field in required if not entry.HasField(field)]:
        return f"required field missing: {', '.join(missing)}", DAMAGED
    if (dev := _first_number(message)) >= 1 << 32:
        return f"dev is {dev:#x}, outside of 32 bits", DAMAGED
    unknown = UnknownFieldSet(entry)
    if numbers := sorted({unknown[i].field_number for i in range(len(unknown))}):
        return f"unknown field: {', '.join(map(str, numbers))}", _REFUSED
    how = "a repeated field, another order, a padded number"
    return f"not encoded as CRIU encodes it ({how})", _REFUSED


def _first_number(message: bytes) -> int:
    # Of field 1, where it comes first; protobuf cuts it to 32 bits.
    number = 0
    if message.startswith(b"\x08"):
        for index, byte in enumerate(message[1:11]):
            number |= (byte & 0x7F) << 7 * index
            if byte < 0x80:  # noqa: PLR2004 - the last one
                break
    return number


_make = CacheEntry._make  # takes half the time of the class itself


def decode_cache(data: bytes, name: str) -> tuple[CacheEntry, ...]:
    """The entries of the image `data`, in its order; `name` stands for the file in errors.

    Raises ImageError unless CRIU could have written the file, byte for byte. The entries are not
    checked: their devices, inodes and paths need not exist, and a path may be empty, relative, or
    contain any byte.
    """
    entry = IrmapCacheEntry()  # one for all: a new one for each takes twice as long
    parse, forget_unknown = entry.ParseFromString, entry.DiscardUnknownFields
    serialize = entry.SerializeToString
    entries: list[CacheEntry] = []
    for offset, message in frames(data, name, IRMAP_CACHE):
        try:
            parse(message)
            forget_unknown()
            canonical = serialize() == message
        except (DecodeError, EncodeError):
            canonical = False
        if not canonical:
            what, advice = _what_is_wrong(message)
            raise image_error(name, offset, f"entry {len(entries)}: {what}", advice=advice)
        entries.append(_make((entry.dev, entry.inode, entry.path)))
    return tuple(entries)


def loadable(data: bytes) -> bool:
    """Whether CRIU would load the image; `decode_cache` may be stricter.

    With an image that it would not load, `criu dump` fails.
    """
    try:
        messages = [message for _, message in frames(data, "", IRMAP_CACHE)]
        return all(IrmapCacheEntry.FromString(message).IsInitialized() for message in messages)
    except (ImageError, DecodeError):
        return False


def fits(entry: CacheEntry) -> bool:
    """Whether the device is u32 and the inode number u64, as the image needs them."""
    return 0 <= entry.kdev < 1 << 32 and 0 <= entry.ino < 1 << 64


def misfit(index: int, entry: CacheEntry) -> ImageError:
    """The error for an entry that does not fit."""
    return ImageError(
        f"entry {index} does not fit into an irmap-cache: device {entry.kdev} (unsigned 32 "
        f"bits), inode {entry.ino} (unsigned 64 bits)",
        advice="look where the entry came from",
    )


def _messages(entries: Iterable[CacheEntry]) -> Iterator[bytes]:
    message = IrmapCacheEntry()  # one for all: a new one for each takes twice as long
    for index, entry in enumerate(entries):
        try:
            message.dev, message.inode, message.path = entry
        except ValueError:
            raise misfit(index, entry) from None
        yield message.SerializeToString()


def encode_cache(entries: Iterable[CacheEntry]) -> bytes:
    """The image of these entries, in their order; only a header if there are none.

    Raises ImageError for a device that is not u32 or an inode number that is not u64.
    """
    return join_frames(IRMAP_CACHE, _messages(entries))
