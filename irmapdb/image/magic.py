"""Detects the type of an image from its first bytes.

Facts from CRIU's criu/include/magic.h. Since format 1.1 an image starts with two numbers: its
group (common or service), then its kind; inventory.img has the kind alone, as all images had
before. The kinds carry the names that crit prints.
"""

from __future__ import annotations

import struct

from irmapdb.record import Record

__all__ = [
    "FANOTIFY_FILE",
    "FILES",
    "GHOST_FILE",
    "HEADER",
    "INOTIFY_FILE",
    "IRMAP_CACHE",
    "MOUNTS",
    "SQLITE_HEADER",
    "STATS",
    "Magic",
    "describe",
]

_COMMON = 0x54564319
_SERVICE = 0x55105940


class Magic(Record):
    """The two numbers that a format 1.1 image starts with."""

    group: int
    kind: int

    @property
    def name(self) -> str:
        """As crit names the image."""
        return _KINDS[self.kind]


HEADER = struct.Struct("<II")
"""Group and kind, little-endian."""

IRMAP_CACHE = Magic(_SERVICE, 0x57004059)
FILES = Magic(_COMMON, 0x56303138)
INOTIFY_FILE = Magic(_COMMON, 0x48424431)
FANOTIFY_FILE = Magic(_COMMON, 0x55096122)
MOUNTS = Magic(_COMMON, 0x55563928)
GHOST_FILE = Magic(_COMMON, 0x52583605)
STATS = Magic(_SERVICE, 0x57093306)

SQLITE_HEADER = b"SQLite format 3\0"
"""The first 16 bytes of a database: https://www.sqlite.org/fileformat.html"""

# awk '/^#define [A-Z_]+_MAGIC[ \t]+0x[^0]/ {sub(/_MAGIC/, "", $2); print $3, $2}' magic.h
_KINDS = {
    0x58313116: "INVENTORY",
    0x50273030: "PSTREE",
    0x56213732: "FDINFO",
    0x56084025: "PAGEMAP",
    0x55053847: "CORE",
    0x54432030: "IDS",
    0x54123737: "VMAS",
    0x56513555: "PIPES",
    0x56453709: "PIPES_DATA",
    0x58364939: "FIFO",
    0x59333054: "FIFO_DATA",
    0x55344201: "SIGACT",
    0x54373943: "UNIXSK",
    0x56443851: "INETSK",
    0x60454618: "PACKETSK",
    0x57464056: "ITIMERS",
    0x52603957: "POSIX_TIMERS",
    0x56264026: "SK_QUEUES",
    0x54473203: "UTSNS",
    0x54023547: "CREDS",
    0x53115007: "IPC_VAR",
    0x46283044: "IPCNS_SHM",
    0x55453737: "IPCNS_MSG",
    0x59573019: "IPCNS_SEM",
    0x50363636: "REG_FILES",
    0x59255641: "EXT_FILES",
    0x51403912: "FS",
    0x57492820: "MM",
    0x59133954: "REMAP_FPATH",
    0x52583605: "GHOST_FILE",
    0x51465506: "TCP_STREAM",
    0x44523722: "EVENTFD_FILE",
    0x45023858: "EVENTPOLL_FILE",
    0x44433746: "EVENTPOLL_TFD",
    0x57323820: "SIGNALFD",
    0x48424431: "INOTIFY_FILE",
    0x54562009: "INOTIFY_WD",
    0x55563928: "MNTS",
    0x57373951: "NETDEV",
    0x55933752: "NETNS",
    0x59433025: "TTY_FILES",
    0x59453036: "TTY_INFO",
    0x59413026: "TTY_DATA",
    0x54323616: "FILE_LOCKS",
    0x57113925: "RLIMIT",
    0x55096122: "FANOTIFY_FILE",
    0x56506035: "FANOTIFY_MARK",
    0x59255647: "SIGNAL",
    0x58005614: "NETLINK_SK",
    0x61394011: "NS_FILES",
    0x57143751: "TUNFILE",
    0x59383330: "CGROUP",
    0x50493712: "TIMERFD",
    0x61404013: "CPUINFO",
    0x55474906: "USERNS",
    0x64413049: "SECCOMP",
    0x67343323: "BINFMT_MISC",
    0x49353943: "AUTOFS",
    0x56303138: "FILES",
    0x48453499: "MEMFD_INODE",
    0x43114433: "TIMENS",
    0x61157326: "PIDNS",
    0x57506142: "BPFMAP_FILE",
    0x64324033: "BPFMAP_DATA",
    0x59423047: "APPARMOR",
    0x54435556: "PIDFD",
    0x57093306: "STATS",
    0x57004059: "IRMAP_CACHE",
    0x57023458: "KDAT",
}


def describe(prefix: bytes) -> str:
    """The apparent type of a file that starts with `prefix` (16 bytes or more), for a message.

    Never fails: an unknown prefix is shown as hex.
    """
    if not prefix:
        return "an empty file"
    if prefix.startswith(SQLITE_HEADER):
        return "an SQLite database"
    if prefix.lstrip()[:1] == b"{":
        return "JSON"
    head = prefix[: HEADER.size]
    words = struct.unpack_from(f"<{len(head) // 4}I", head)
    if words and words[0] in _KINDS:
        return f"CRIU's {_KINDS[words[0]]} image, without a group magic"
    if words and words[0] in (_COMMON, _SERVICE):
        if len(head) < HEADER.size:
            return "a CRIU image, cut off in its header"
        kind = _KINDS.get(words[1])
        return f"CRIU's {kind} image" if kind else f"a CRIU image of unknown kind {words[1]:#x}"
    return f"nothing that irmapdb knows (it starts with {prefix[:8].hex(' ')})"
