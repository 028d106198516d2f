"""Targets: the text of /proc, of which a tenant chooses names, options and watches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from irmapdb.kernel.proc.fdinfo import parse_fdinfo
from irmapdb.kernel.proc.mountinfo import parse_mountinfo
from irmapdb.model import MarkKind, WatchKind, major_minor
from tests.fuzz.target import Target, check, check_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from irmapdb.model import Mount, Watch, WatchFile

__all__ = ["TARGETS"]

_DATA = Path(__file__).parent.parent / "data" / "proc"


def _handle(watch: Watch) -> str:
    handle = watch.identity.handle
    if handle is None:
        return ""
    size, data = len(handle.data), handle.data.hex()
    return f" fhandle-bytes:{size:x} fhandle-type:{handle.type:x} f_handle:{data}"


def _fdinfo_text(file: WatchFile) -> bytes:
    """The text that the kernel prints for such a descriptor, fs/notify/fdinfo.c."""
    lines = [f"flags:\t0{file.flags:o}"]
    if file.kind is WatchKind.FANOTIFY:
        lines.append(f"fanotify flags:{file.faflags:x} event-flags:{file.evflags:x}")
    for watch in file.watches:
        place = f"ino:{watch.identity.ino:x} sdev:{watch.identity.kdev:x}"
        masks = f"mask:{watch.mask:x} ignored_mask:{watch.ignored_mask:x}"
        if file.kind is WatchKind.INOTIFY:
            lines.append(f"inotify wd:{watch.wd:x} {place} {masks}{_handle(watch)}")
        else:
            lines.append(f"fanotify {place} mflags:{watch.mflags:x} {masks}{_handle(watch)}")
    for mark in file.marks:
        place = {
            MarkKind.MOUNT: f"mnt_id:{mark.target:x}",
            MarkKind.FILESYSTEM: f"sdev:{mark.target:x}",
            MarkKind.NAMESPACE: f"mnt_ns:{mark.target}",
        }[mark.kind]
        masks = f"mask:{mark.mask:x} ignored_mask:{mark.ignored_mask:x}"
        lines.append(f"fanotify {place} mflags:{mark.mflags:x} {masks}")
    return "\n".join(lines).encode() + b"\n"


def _fdinfo(data: bytes) -> None:
    for kind in WatchKind:
        file = parse_fdinfo(data, 1, 2, kind)
        lines = data.count(f"{kind} ".encode())
        check(len(file.watches) + len(file.marks) <= lines, "more watches than lines")
        check(parse_fdinfo(_fdinfo_text(file), 1, 2, kind) == file, "another file came back")


def _escaped(field: bytes) -> bytes:
    """As mangle_path() of fs/seq_file.c writes a name."""
    for byte in b"\\ \t\n#":
        field = field.replace(bytes((byte,)), f"\\{byte:03o}".encode())
    return field


def _mountinfo_line(mount: Mount) -> bytes:
    major, minor = major_minor(mount.kdev)
    ids = f"{mount.mnt_id} {mount.parent_id} {major}:{minor}".encode()
    names = b" ".join(map(_escaped, (mount.root, mount.mountpoint, mount.options)))
    fstype = mount.fstype.encode("utf-8", "surrogateescape").replace(b" ", b"\\040")
    return b" ".join(
        (ids, names, b"shared:1 -", fstype, _escaped(mount.source), mount.super_options)
    )


def _mountinfo(data: bytes) -> None:
    mounts = parse_mountinfo(data)
    check(len(mounts) <= data.count(b" - "), "more mounts than lines")
    text = b"\n".join(map(_mountinfo_line, mounts))
    again = parse_mountinfo(text)
    check(len(again) == len(mounts), "another number of mounts came back")
    for mount, other in zip(mounts, again, strict=True):
        check_text(mount.fstype)
        # A type with a backslash is printed with two: compare the rest.
        check(
            mount._replace(fstype="") == other._replace(fstype=""), f"{mount} came back as {other}"
        )


def _fdinfo_seeds() -> Iterator[bytes]:
    for path in sorted(_DATA.glob("fdinfo-*.txt")):
        text = path.read_bytes()
        yield text
        yield from text.splitlines(keepends=True)
    yield b"fanotify mnt_ns:4026531841 mflags:0 mask:1000000 ignored_mask:0\n"


def _mountinfo_seeds() -> Iterator[bytes]:
    text = (_DATA / "mountinfo.txt").read_bytes()
    yield text
    yield from text.splitlines(keepends=True)


TARGETS = (
    Target(
        "fdinfo",
        _fdinfo,
        _fdinfo_seeds,
        (
            *(b"inotify wd:", b"fanotify ino:", b"fanotify mnt_id:", b"fanotify sdev:"),
            *(b" ino:", b" sdev:", b" mask:", b" ignored_mask:", b" mflags:", b"\nflags:\t"),
            *(b" fhandle-bytes:", b" fhandle-type:", b" f_handle:", b"ffffffffffffffff"),
            *(b"fanotify flags:", b" event-flags:", b"fanotify mnt_ns:"),
        ),
    ),
    Target(
        "mountinfo",
        _mountinfo,
        _mountinfo_seeds,
        (
            *(b" - ", b"\\040", b"\\134", b"\\012", b"\\377", b"\\000", b" master:1", b"0:41"),
            *(b"overlay", b"fuse.", b"lowerdir=", b"upperdir=", b"lowerdir+=", b"::", b"\n"),
        ),
    ),
)
