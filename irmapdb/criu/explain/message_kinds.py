"""Defines the data about a message of CRIU: its pattern, its effect and its remedy.

A pattern has no more of a text than is needed to recognize it and to read the inode, the watch and
the path in it. It is matched behind the time, the level, `fsnotify: ` or `irmap: `, and tabs.
Numbers are hexadecimal, with or without `0x`, and may have zeros or blanks before them.
"""

from __future__ import annotations

import enum

from irmapdb.record import Record

__all__ = [
    "ALL",
    "ANY_PATH",
    "CANNOT",
    "DEV",
    "DEV_INO",
    "ID",
    "INO",
    "KEY",
    "MNT",
    "NEW",
    "PATH",
    "WD",
    "WHY",
    "Message",
    "Remedy",
    "Role",
]


class Role(enum.StrEnum):
    """The effect of a message on the run of CRIU."""

    CAUSE = "cause"
    """CRIU ends with this error."""
    NAMES = "names"
    """Follows a cause, and names the watch."""
    LOSS = "loss"
    """CRIU continues, but a watch or an event is lost, or the dump is slow."""
    HARMLESS = "harmless"
    """CRIU goes on, and nothing is lost."""
    STEP = "step"
    """CRIU reports its work."""


class Remedy(enum.StrEnum):
    """The kind of help. `engines` has the command of each engine for it."""

    NONE = "none"
    HOOK = "hook"
    """Put the path into irmap-cache before the dump."""
    HOOK_LOG = "hook-log"
    """The hook ran and found no path: its log has the reason."""
    CHECK = "check"
    """Ask `irmapdb check`, which names the entry that CRIU does not accept."""
    NO_FORCE = "no-force-irmap"
    REMOVE_WATCH = "remove-watch"
    TMPFS = "tmpfs"
    """Remove the watch, or do not mount its file beside a tmpfs."""
    PROVIDE_PATH = "provide-path"
    """The file must be there before the restore."""
    LIMIT = "limit"
    """A limit of inotify or fanotify."""
    REMOVE_CACHE = "remove-cache"
    PRE_DUMP = "irmapdb-pre-dump"
    REINSTALL = "reinstall"
    KERNEL = "kernel"
    MOUNT = "mount"
    MEMORY = "memory"
    IMAGES = "images"
    """The images are damaged, or another CRIU wrote them."""
    SCRIPT = "script"
    LAYERS = "layers"
    """An overlay whose layers are on several filesystems."""


ALL, NEW = "4.1 to 4.3", "4.3"


class Message(Record):
    """One message, and its explanation."""

    name: str
    part: str
    """The file of CRIU without its directory: `fsnotify.c`."""
    pattern: bytes
    """Groups: `dev`, `ino`, `wd`, `mnt`, `id`, `path` and `why` (the kernel's words)."""
    role: Role
    meaning: str
    remedy: Remedy = Remedy.NONE
    versions: str = ALL

    @property
    def is_ours(self) -> bool:
        """Whether it is about watches, marks, or their paths."""
        return self.part in {"fsnotify.c", "irmap.c", "proc_parse.c"}


DEV = rb"(?:0x)?(?P<dev>[0-9a-f]{1,8})\b"
INO = rb" {0,24}(?:0x)?(?P<ino>[0-9a-f]{1,16})\b"
KEY = DEV + rb":(?:0x)?(?P<ino>[0-9a-f]{1,16})\b"
DEV_INO = rb"dev " + DEV + rb" ino" + INO
WD = rb"(?:0x)?(?P<wd>[0-9a-f]{1,8})\b"
ID = rb"(?:0x)?(?P<id>[0-9a-f]{1,8})\b"
MNT = rb"(?:0x)?(?P<mnt>-?[0-9a-f]{1,8})\b"
PATH = rb"(?P<path>/.{0,4096})"
ANY_PATH = rb"(?P<path>.{1,4096})"
"""CRIU has some paths relative to the root."""
WHY = rb": (?P<why>[^:]{1,120})$"
CANNOT = rb"Can't "
