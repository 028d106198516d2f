"""Defines the data that all layers share: facts of the kernel, stored mappings, results.

Everything here is frozen. Paths are `bytes`, absolute in the root of the root task's mount
namespace. Device numbers are the kernel's (`kdev`, major << 20 | minor), never a `st_dev`.
"""

from __future__ import annotations

import os
import sys
from types import MappingProxyType

from irmapdb.record import Record, Words

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re
    from collections import abc
    from datetime import datetime

__all__ = [
    "DEVICE",
    "FAN_MARK_IGNORE",
    "AnyPath",
    "CacheEntry",
    "Change",
    "ChangeKind",
    "Event",
    "FileHandle",
    "Identity",
    "InodeKey",
    "Mapping",
    "Mark",
    "MarkKind",
    "Mount",
    "Resolved",
    "RunStats",
    "Source",
    "StaleReason",
    "Tried",
    "Unresolved",
    "Watch",
    "WatchFile",
    "WatchKind",
    "format_kdev",
    "from_printable",
    "is_canonical",
    "is_fuse",
    "kdev_of",
    "major_minor",
    "one_line",
    "parse_kdev",
    "printable",
    "printable_text",
]

AnyPath = bytes | os.PathLike[str]
"""As it comes in: `os.fsencode` makes bytes of it. `pathlib` takes too long to import for the
hook."""

_MINOR_BITS = 20
_MINOR_MASK = (1 << _MINOR_BITS) - 1


def kdev_of(major: int, minor: int) -> int:
    """The kernel's device number: MKDEV() of include/linux/kdev_t.h."""
    return major << _MINOR_BITS | minor


def major_minor(kdev: int) -> tuple[int, int]:
    """MAJOR() and MINOR() of include/linux/kdev_t.h."""
    return kdev >> _MINOR_BITS, kdev & _MINOR_MASK


def format_kdev(kdev: int) -> str:
    """`major:minor`, as mountinfo and ls print a device."""
    major, minor = major_minor(kdev)
    return f"{major}:{minor}"


DEVICE = r"(?a)(\d{1,20}):(\d{1,20})"
"""A device as `format_kdev` shows it. A text, as the hook does without `re`, whose import and
compiler take 3 ms."""


def parse_kdev(text: str) -> int:
    """The device that `format_kdev` shows as `text`. ValueError says why it is none."""
    import re  # noqa: PLC0415 the hook needs it seldom

    found = re.fullmatch(DEVICE, text)
    if found is None:
        raise ValueError("no device")
    major, minor = map(int, found.groups())
    if major >> 32 - _MINOR_BITS or minor >> _MINOR_BITS:
        raise ValueError("larger than any device number")
    return kdev_of(major, minor)


_NAMED = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\\": "\\\\"}
_NAMED_BACK = {escape[1]: character for character, escape in _NAMED.items()}
_ESCAPE = r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|([ntr\\])|)"
_ASCII = 0x80


def _escape(character: str) -> str:
    if character in _NAMED:
        return _NAMED[character]
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # noqa: PLR2004 a byte that surrogateescape kept
        return f"\\x{code - 0xDC00:02x}"
    if code < _ASCII:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"  # noqa: PLR2004 four digits


def printable(name: AnyPath) -> str:
    r"""A name on one line, without control characters; no two names give the same text.

    For everything that people read: a path, a mount point or a task's comm is chosen by a tenant.
    `\xe9` is a byte that is not UTF-8, `\u0095` and `\U000e0001` are characters that cannot be
    printed or that hide or reorder others, `\\` is a backslash. `from_printable` is the inverse.
    """
    text = os.fsencode(name).decode("utf-8", "surrogateescape")
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(
        one if one.isprintable() and one != "\\" else _escape(one)  # one character
        for one in text
    )


def printable_text(text: str) -> str:
    """`printable` of a text in which a byte that is no UTF-8 is a lone surrogate."""
    return printable(text.encode("utf-8", "surrogateescape"))


def one_line(text: str) -> str:
    """A text of several names, each printable already; escaped whole if it is not."""
    return text if text.isprintable() else ascii(text)[1:-1]


def from_printable(text: str) -> bytes:
    """The name that `printable` shows as `text`. ValueError for an escape that it never writes."""
    import re  # noqa: PLC0415

    return os.fsencode(re.sub(_ESCAPE, _unescape, text))


def _unescape(found: re.Match[str]) -> str:
    byte, short, long, named = found.groups()
    if named is not None:
        return _NAMED_BACK[named]
    if byte is not None:
        code = int(byte, 16)
        return chr(code if code < _ASCII else 0xDC00 + code)
    if short is None and long is None:
        raise ValueError("a backslash that begins no escape")
    code = int(short or long, 16)
    if code > sys.maxunicode or 0xD800 <= code <= 0xDFFF:  # noqa: PLR2004 surrogates
        raise ValueError("an escape of no character")
    return chr(code)


_NO_NAMES = frozenset({b"", b".", b".."})


def is_canonical(path: bytes) -> bool:
    """Whether the kernel could give this path to a file.

    No proof accepts any other path: its text does not show the mount at its end. The path has names
    between single slashes, none of them "." or ".."; or it is the root, which CRIU calls "/.".
    """
    first, *names = path.split(b"/")
    if not names or first or b"\0" in path:
        return False
    return _NO_NAMES.isdisjoint(names) or names in ([b""], [b"."])


class InodeKey(Record):
    """The key of CRIU's cache. Not unique on btrfs and overlayfs."""

    kdev: int
    ino: int

    def __str__(self) -> str:
        # As CRIU's log prints it ("Resolving fe00000:2e3 path").
        return f"{self.kdev:x}:{self.ino:x}"


class FileHandle(Record):
    """`struct file_handle` as fdinfo prints it and name_to_handle_at(2) returns it."""

    type: int
    data: bytes

    def __str__(self) -> str:
        return f"{self.type:x}:{self.data.hex()}"


class Identity(Record):
    """The identity of an inode: (kdev, handle), or (kdev, ino) without a handle."""

    kdev: int
    ino: int
    handle: FileHandle | None

    @property
    def key(self) -> InodeKey:
        return InodeKey(self.kdev, self.ino)

    def matches(self, other: Identity) -> bool:
        """Whether both name one inode.

        With a handle on both sides the inode number is not asked: the handle is the stronger
        of the two, and st_ino may differ from the inode's own number (overlayfs, btrfs roots).
        """
        if self.kdev != other.kdev:
            return False
        if self.handle is not None and other.handle is not None:
            return self.handle == other.handle
        return self.ino == other.ino

    def __str__(self) -> str:
        return f"{self.key} handle {self.handle}" if self.handle else str(self.key)


class WatchKind(Words):
    """The type of an open descriptor."""

    INOTIFY = "inotify"
    FANOTIFY = "fanotify"


class Watch(Record):
    """One inode that a task watches: an inotify watch or a fanotify inode mark."""

    pid: int
    """The task, as the caller's pid namespace counts."""
    fd: int
    kind: WatchKind
    wd: int
    """inotify's watch descriptor; -1 for a fanotify mark."""
    identity: Identity
    mask: int
    ignored_mask: int
    mflags: int
    """fanotify's mark flags; 0 for inotify."""


FAN_MARK_IGNORE = 0x400
"""The flag of a mark whose ignore mask was set with it (include/uapi/linux/fanotify.h). A restore
by CRIU adds the mask with FAN_MARK_IGNORED_MASK and all flags of the mark, and the kernel refuses
the two together: do_fanotify_mark() of fs/notify/fanotify/fanotify_user.c."""


class MarkKind(Words):
    """The fanotify marks that carry no inode: listed, not resolved."""

    MOUNT = "mount"
    FILESYSTEM = "filesystem"
    NAMESPACE = "mount-namespace"
    """Since Linux 6.14: it reports the mounts and unmounts there."""


class Mark(Record):
    """A fanotify mark on a whole mount, filesystem or mount namespace."""

    pid: int
    fd: int
    kind: MarkKind
    target: int
    """The mount id of a mount mark, the kdev of a filesystem mark, the inode number of a mount
    namespace."""
    mask: int
    ignored_mask: int
    mflags: int


class WatchFile(Record):
    """One open inotify or fanotify descriptor, as its fdinfo showed it."""

    pid: int
    fd: int
    kind: WatchKind
    flags: int
    """open flags (O_NONBLOCK, O_CLOEXEC), from the `flags:` line."""
    faflags: int
    """fanotify_init(2) flags; 0 for inotify."""
    evflags: int
    """fanotify event file flags; 0 for inotify."""
    watches: tuple[Watch, ...]
    marks: tuple[Mark, ...]


class Mount(Record):
    """One line of mountinfo, proc_pid_mountinfo(5), octal escapes undone."""

    mnt_id: int
    parent_id: int
    kdev: int
    root: bytes
    mountpoint: bytes
    options: bytes
    fstype: str
    source: bytes
    super_options: bytes
    """The raw text with its escapes: a comma in a name does not end an option."""


def is_fuse(fstype: str) -> bool:
    """Whether a mount's type is FUSE, served by a program: `fuse`, `fuseblk`, `fuse.sshfs`.

    fusectl is not: it is the kernel's own list of the connections.
    """
    return fstype.partition(".")[0] in {"fuse", "fuseblk"}


class CacheEntry(Record):
    """One `irmap_cache_entry` of CRIU's image, exactly as in the file, and not proved."""

    kdev: int
    ino: int
    path: bytes

    @property
    def key(self) -> InodeKey:
        return InodeKey(self.kdev, self.ino)


class Source(Words):
    """The first source of a mapping."""

    IMAGE = "image"
    STORED = "stored"
    HANDLE = "handle"
    OVERLAY = "overlay"
    BTRFS = "btrfs"
    XFS = "xfs"
    OPEN_FILES = "open-files"
    SCAN = "scan"


class StaleReason(Words):
    """Why a mapping is stale."""

    GONE = "gone"
    """Nothing is at the path any more."""
    REPLACED = "replaced"
    """The path names another inode now."""
    REUSED = "reused"
    """The same inode number, but another file (the handle differs)."""
    SYMLINK = "symlink"
    """A part of the path has become a symbolic link, or leaves the root."""
    AMBIGUOUS = "ambiguous"
    """The path has the wanted handle, but another file may have the same handle."""
    UNMOUNTED = "unmounted"
    """The device is not mounted there any more."""
    UNREACHABLE = "unreachable"
    """We may not look (permission), or could not (an input error)."""
    BAD_PATH = "bad-path"
    """Not a path that the kernel would give: relative, with `..` or `//`, or with a NUL byte."""
    DELETED = "deleted"
    """The path does not exist, and the inode has no name or does not exist. Only from an audit."""
    MOVED = "moved"
    """The inode exists, under an unknown name. Only from an audit."""


class Mapping(Record):
    """One row of the working set: an inode and a path it had."""

    identity: Identity
    path: bytes
    source: Source
    revalidate: bool
    """Loaded, not proved in this run: prove it before use."""
    first_seen_at: datetime
    validated_at: datetime | None = None
    last_used_at: datetime | None = None
    stale_at: datetime | None = None
    stale_reason: StaleReason | None = None
    mntns: int = 0
    """Inode number of the nested mount namespace whose root the path starts at. If all its tasks
    are in chroots, the path starts at the root of the watching task. 0: the root task's own
    namespace; CRIU's cache has only paths of that."""
    id: int | None = None
    """The row's id; None before it is stored."""

    @property
    def stale(self) -> bool:
        return self.stale_at is not None


class ChangeKind(Words):
    """A change of a mapping."""

    FOUND = "found"
    MOVED = "moved"
    """The same inode, by its handle, has another path now."""
    STALE = "stale"
    REVIVED = "revived"


class Change(Record):
    """A change of the mapping of one inode in one run."""

    kind: ChangeKind
    identity: Identity
    path: bytes
    """The path the mapping has (found, revived), had (stale), or has now (moved)."""
    old_path: bytes | None = None
    """For moved: the path that went stale."""
    reason: StaleReason | None = None
    """For stale and moved: why the old path is wrong now."""
    mntns: int = 0
    """As in Mapping: the paths start at the root of this mount namespace."""


class Tried(Record):
    """The answer of one resolver for a watch that it could not resolve."""

    resolver: str
    note: str


class Resolved(Record):
    """A path that was proved against the identity in this run."""

    identity: Identity
    path: bytes
    """The best path, for a caller that wants only one."""
    source: Source
    other_paths: tuple[bytes, ...] = ()
    """Further proved names of the same inode (hard links, bind mounts)."""
    mntns: int = 0


class Unresolved(Record):
    """No path could be proved; a result like any other."""

    identity: Identity
    tried: tuple[Tried, ...]
    deleted: bool = False
    """The inode has no name left: nothing to find, and CRIU has its own way for it."""
    cut: bool = False
    """The time was up before every source had been asked: there may be a path."""

    @property
    def why(self) -> str:
        """One line for people."""
        return "; ".join(f"{t.resolver}: {t.note}" for t in self.tried) or "no source was asked"


class Event(Words):
    """The event of a row of the `run` table."""

    PRE_DUMP = "pre-dump"
    DUMP = "dump"
    IMPORT = "import"
    AUDIT_FIX = "audit-fix"
    PRUNE = "prune"


class RunStats(Record):
    """The figures of one step; all times in microseconds."""

    freezing_us: int = 0
    frozen_us: int = 0
    resolve_us: int = 0
    watches: int = 0
    resolved: int = 0
    unresolved: int = 0
    hits: int = 0
    """Identities answered by a stored row."""
    stale: int = 0
    """Mappings that went stale in this run."""
    scanned: int = 0
    """Directory entries that a scan looked at."""
    tasks_frozen: int = 0
    reread_us: int = 0
    """Part of `frozen_us`: reading the watches again."""
    reparsed: int = 0
    """The number of descriptors whose text has changed since before the freeze."""
    confirm_us: int = 0
    """Part of `frozen_us`: asking for renames, removals and mounts since the proof."""
    reproved: int = 0
    """Answers that were proved again in the freeze."""
    reproved_why: str = ""
    """The numbers for each cause: `renamed 2, not witnessed 5`."""
    frozen_resolve_us: int = 0
    """Part of `frozen_us` and of `resolve_us`: proving again, and resolving new watches."""
    paused: int = 0
    """1: a container engine had the tasks paused already."""
    paused_us: int = 0
    """The part of that pause until CRIU had its answer."""
    criu_freezing_us: int = 0
    """In a run of the hook: CRIU's `freezing_time`, until all tasks were stopped; 0: unknown."""
    criu_frozen_us: int = 0
    """The same for CRIU's `frozen_time`, the time in which they were stopped."""
    sources: abc.Mapping[str, int] = MappingProxyType({})
    """The number of identities that each resolver answered."""
