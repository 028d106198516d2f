"""Every name of every inode, found by a walk: a reverse lookup must give the same names.

No code of irmapdb takes part. The walk goes from descriptor to descriptor, so a path may be longer
than PATH_MAX; handles come from name_to_handle_at(2), devices from the mount ids it gives.
"""

from __future__ import annotations

import ctypes
import os
import struct
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from irmapdb.model import FileHandle, Identity
from irmapdb.resolve.engine import Candidate, Note

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from irmapdb.resolve.engine import Resolver

__all__ = [
    "CAP_DAC_READ_SEARCH",
    "CAP_SYS_ADMIN",
    "Names",
    "ask",
    "every_name",
    "identity_at",
    "identity_of",
    "without",
]

Names = dict[Identity, set[bytes]]

_libc = ctypes.CDLL(None, use_errno=True)
_AT_HANDLE_FID = 0x200
_HANDLE_BYTES = 128


def _kdevs() -> dict[int, int]:
    kdevs = {}
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        number, _, device, *_ = line.split(b" ")
        major, minor = device.split(b":")
        kdevs[int(number)] = int(major) << 20 | int(minor)
    return kdevs


def identity_at(dir_fd: int, name: bytes, kdevs: dict[int, int] | None = None) -> Identity:
    """The inode of `name` in the directory `dir_fd`; a link is not followed."""
    block = ctypes.create_string_buffer(struct.pack("=Ii", _HANDLE_BYTES, 0), 8 + _HANDLE_BYTES)
    mount_id = ctypes.c_int()
    failed = _libc.name_to_handle_at(dir_fd, name, block, ctypes.byref(mount_id), _AT_HANDLE_FID)
    if failed:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), name)
    size, kind = struct.unpack_from("=Ii", block)
    ino = os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_ino
    kdev = (kdevs or _kdevs())[mount_id.value]
    return Identity(kdev, ino, FileHandle(kind, block.raw[8 : 8 + size]))


def every_name(top: Path, kdev: int) -> Names:
    """Every path at and below `top` on the device, by its inode.

    Through all mounts below.
    """
    names: Names = {}
    kdevs = _kdevs()
    for path, directories, files, fd in os.fwalk(os.fsencode(top)):
        here = [(b".", path)]
        here += [(name, path + b"/" + name) for name in files]
        here += [
            (name, path + b"/" + name)
            for name in directories
            if os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode & 0o170000 == 0o120000
        ]
        for name, whole in here:
            identity = identity_at(fd, name, kdevs)
            if identity.kdev == kdev:
                names.setdefault(identity, set()).add(whole)
    return names


def ask(resolver: Resolver, wanted: Collection[Identity]) -> tuple[Names, dict[Identity, str]]:
    """The answer of a resolver: paths, each once, and one note for each inode without a path."""
    names: Names = {}
    notes: dict[Identity, str] = {}
    for answer in resolver(dict.fromkeys(wanted).keys()):
        assert answer.identity in wanted
        if isinstance(answer, Candidate):
            found = names.setdefault(answer.identity, set())
            assert answer.path not in found, f"{answer.path!r} twice"
            found.add(answer.path)
        else:
            assert isinstance(answer, Note)
            assert answer.identity not in notes, "one note is enough"
            notes[answer.identity] = answer.text
    return names, notes


CAP_DAC_READ_SEARCH = 2
CAP_SYS_ADMIN = 21
_CAPABILITY_VERSION_3 = 0x20080522


@contextmanager
def without(*capabilities: int) -> Iterator[None]:
    """Without these in this thread and in those that it starts: capget(2), capset(2)."""
    head = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0))
    data = ctypes.create_string_buffer(24)  # two times effective, permitted, inheritable
    assert _libc.capget(head, data) == 0
    before = data.raw[:24]
    effective, *rest = struct.unpack("=6I", before)
    for capability in capabilities:
        effective &= ~(1 << capability)
    assert _libc.capset(head, struct.pack("=6I", effective, *rest)) == 0
    try:
        yield
    finally:
        assert _libc.capset(head, before) == 0


def identity_of(path: Path) -> Identity:
    """The identity of a file, as a watch would have it."""
    fd = os.open(path.parent, os.O_RDONLY)
    try:
        return identity_at(fd, os.fsencode(path.name))
    finally:
        os.close(fd)
