"""Every message of CRIU's fsnotify.c and irmap.c, and those about `irmap-cache` and the hook.

CRIU 4.1 and 4.2 have the same messages; 4.3 has others for most errors, and messages about its walk
of an overlay. A pattern has no more of a text than is needed to recognize it and to read the
inode, the watch and the path in it. It is matched behind the time, the level, `fsnotify: ` or
`irmap: `, and tabs. Numbers are hexadecimal, with or without `0x`, and may have zeros or blanks
before them.

Sources: criu/fsnotify.c and criu/irmap.c of CRIU 4.1.1 and 4.2; the texts in the programs of 4.2.1
and 4.3; criu/image.c and criu/action-scripts.c.
"""

from __future__ import annotations

import enum
import re
from functools import cache

from irmapdb.record import Record

__all__ = ["MESSAGES", "Message", "Remedy", "Role", "find_message"]


class Role(enum.StrEnum):
    """The effect of a message on the run of CRIU."""

    CAUSE = "cause"
    """CRIU ends with this error."""
    NAMES = "names"
    """Follows a cause, and names the watch."""
    LOSS = "loss"
    """CRIU goes on, and something is lost or slow."""
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


_ALL, _OLD, _NEW = "4.1 to 4.3", "4.1, 4.2", "4.3"


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
    versions: str = _ALL

    @property
    def is_ours(self) -> bool:
        """Whether it is about watches, marks, or their paths."""
        return self.part in {"fsnotify.c", "irmap.c", "proc_parse.c"}


_DEV = rb"(?:0x)?(?P<dev>[0-9a-f]{1,8})\b"
_INO = rb" {0,24}(?:0x)?(?P<ino>[0-9a-f]{1,16})\b"
_KEY = _DEV + rb":(?:0x)?(?P<ino>[0-9a-f]{1,16})\b"
_DEV_INO = rb"dev " + _DEV + rb" ino" + _INO
_WD = rb"(?:0x)?(?P<wd>[0-9a-f]{1,8})\b"
_ID = rb"(?:0x)?(?P<id>[0-9a-f]{1,8})\b"
_MNT = rb"(?:0x)?(?P<mnt>-?[0-9a-f]{1,8})\b"
_PATH = rb"(?P<path>/.{0,4096})"
_ANY_PATH = rb"(?P<path>.{1,4096})"
"""CRIU has some paths relative to the root."""
_WHY = rb": (?P<why>[^:]{1,120})$"
_CANNOT = rb"Can't "


def _fsnotify(
    name: str,
    pattern: bytes,
    role: Role,
    meaning: str,
    remedy: Remedy = Remedy.NONE,
    versions: str = _ALL,
) -> Message:
    return Message(name, "fsnotify.c", pattern, role, meaning, remedy, versions)


def _irmap(
    name: str, pattern: bytes, role: Role, meaning: str, remedy: Remedy = Remedy.NONE
) -> Message:
    return Message(name, "irmap.c", pattern, role, meaning, remedy)


_DUMP = (
    _fsnotify(
        "no-path",
        _CANNOT + rb"dump that handle",
        Role.CAUSE,
        "CRIU found no path for this watch: its file handle does not open (or --force-irmap is "
        "set), and neither irmap-cache nor CRIU's own scan has the inode",
        Remedy.HOOK,
    ),
    _fsnotify(
        "no-path-tmpfs",
        _CANNOT + rb"find suitable path for handle \(" + _DEV_INO,
        Role.CAUSE,
        "the watched file is on tmpfs or devtmpfs. Its handle opens, but has no path: the file "
        "was deleted, or the watch is on a symbolic link itself, or the file is a mount of its "
        "own beside a mount of the same tmpfs. CRIU does not ask irmap-cache here",
        Remedy.TMPFS,
    ),
    _fsnotify(
        "not-mounted",
        rb"Unable to lookup a mount by dev " + _DEV,
        Role.CAUSE,
        "the watched file is on a filesystem that is not mounted in the mount namespace of the "
        "root task",
        Remedy.MOUNT,
    ),
    _fsnotify(
        "mark-mount-unknown",
        _CANNOT + rb"find (?:mount )?mnt_id " + _MNT,
        Role.CAUSE,
        "a fanotify mark is on a mount that the tree does not have. Such a mark has no path, so "
        "irmapdb cannot help",
        Remedy.MOUNT,
    ),
    _fsnotify(
        "stat-failed",
        _CANNOT + rb"stat on " + _ANY_PATH + _WHY,
        Role.CAUSE,
        "CRIU opened a handle and got a path for it, but the path cannot be read",
        Remedy.CHECK,
    ),
    _fsnotify(
        "fdinfo-unreadable",
        rb"Failed to parse fdinfo for (?:ino|fano)tify (?:\(pid (?P<pid>\d{1,10}) lfd "
        rb"(?P<fd>\d{1,10})\)|id " + _ID + rb")",
        Role.CAUSE,
        "CRIU could not read the watches in /proc/PID/fdinfo. On a kernel before 6.6 a watch on "
        "overlayfs has no file handle there",
        Remedy.KERNEL,
        _NEW,
    ),
    _fsnotify(
        "wd-without-path",
        rb"Failed to check handle for inotify wd " + _WD + rb" \(" + _DEV_INO,
        Role.NAMES,
        "the watch that CRIU could not dump",
        Remedy.HOOK,
        _NEW,
    ),
    _fsnotify(
        "queue-failed",
        rb"Failed to queue irmap cache for (?:inotify wd "
        + _WD
        + rb"|fanotify mark) \("
        + _DEV_INO,
        Role.CAUSE,
        "criu pre-dump could not remember this watch, because memory ran out",
        Remedy.MEMORY,
        _NEW,
    ),
    _fsnotify(
        "events-dropped",
        rb"The " + _ID + rb" (?:ino|fano)tify events will be dropped",
        Role.LOSS,
        "the task has not read all events. CRIU saves the watch, but not these events",
    ),
    _fsnotify(
        "child-bit",
        rb"Detected FS_EVENT_ON_CHILD",
        Role.HARMLESS,
        "the kernel sets this bit for each watch on a directory, and again at the restore",
    ),
    _fsnotify(
        "mount-not-opened",
        _CANNOT + rb"open mount for s_dev " + _DEV,
        Role.HARMLESS,
        "CRIU skips a mount that it cannot open, and tries the next mount of the filesystem",
    ),
    _fsnotify(
        "handle-not-opened",
        rb"Handle " + _KEY + rb" cannot be opened",
        Role.HARMLESS,
        "no mount can open this handle, so CRIU asks irmap for the path",
    ),
    _fsnotify(
        "no-memory",
        rb"(?:[a-z_]{1,40}: Can't allocate \d{1,20} bytes|OOM building overlay path for ino"
        + _INO
        + rb")",
        Role.CAUSE,
        "memory ran out",
        Remedy.MEMORY,
    ),
    _fsnotify(
        "bug",
        rb"BUG at ",
        Role.CAUSE,
        "CRIU found its own data to be wrong. This is an error in CRIU",
        Remedy.CHECK,
    ),
)

_WALK = (
    _fsnotify(
        "walk-begins",
        rb"Handle open failed on overlay, trying dir walk for" + _INO,
        Role.STEP,
        "CRIU 4.3 reads the whole overlay for this watch, with the tasks frozen",
        versions=_NEW,
    ),
    _fsnotify(
        "walk-found",
        rb"overlay walk: found ino" + _INO + rb" after (?P<entries>\d{1,20}) entries",
        Role.STEP,
        "the walk found the path",
        versions=_NEW,
    ),
    _fsnotify(
        "walk-long",
        rb"overlay walk: examined (?P<entries>\d{1,20}) entries so far looking for ino" + _INO,
        Role.LOSS,
        "CRIU 4.3 reads the whole overlay for each watch, with the tasks frozen, and does not ask "
        "irmap-cache first",
        versions=_NEW,
    ),
    _fsnotify(
        "walk-entry",
        rb"overlay walk: fstatat\(" + _ANY_PATH,
        Role.HARMLESS,
        "an entry vanished, or cannot be read, during the walk",
        versions=_NEW,
    ),
    _fsnotify(
        "walk-readdir",
        rb"overlay walk: readdir failed on " + _ANY_PATH + _WHY,
        Role.CAUSE,
        "CRIU 4.3 could not read a directory in its walk of the overlay",
        Remedy.CHECK,
        _NEW,
    ),
    _fsnotify(
        "walk-open",
        _CANNOT
        + rb"(?:open overlay mountpoint "
        + _ANY_PATH
        + rb"|fdopendir for overlay walk)"
        + _WHY,
        Role.CAUSE,
        "CRIU 4.3 could not open a directory for its walk of the overlay",
        Remedy.CHECK,
        _NEW,
    ),
)

_RESTORE = (
    _fsnotify(
        "restore-mount-point",
        rb"Unable to open (?:mount point (?P<path>.{0,4096}) \(mnt_id " + _MNT + rb"|\(null\): Bad"
        rb" address)",
        Role.CAUSE,
        "a fanotify mark was on a mount that the restored tree does not have",
        Remedy.MOUNT,
    ),
    _fsnotify(
        "restore-no-path",
        rb"Unable to open (?:\(null\)|(?:ino|fano)tify by handle \(" + _DEV_INO + rb"\))",
        Role.CAUSE,
        "the dump has no path for this watch, so CRIU opened the file by its handle. That works "
        "only on the same filesystem, and only if the root task was in a mount namespace of its "
        "own",
        Remedy.HOOK,
    ),
    _fsnotify(
        "restore-remap",
        rb"Unable to open (?:ino|fano)tify via remap (?P<path>.{0,4096}) \(" + _DEV_INO,
        Role.CAUSE,
        "the watched file was deleted before the dump, and the copy that CRIU made of it could "
        "not be opened",
        Remedy.REMOVE_WATCH,
        _NEW,
    ),
    _fsnotify(
        "restore-path-missing",
        rb"Unable to open (?:(?:ino|fano)tify via path )?(?P<path>[^ (].{0,4096}?)"
        rb"(?: \(" + _DEV_INO + rb"\))?" + _WHY,
        Role.CAUSE,
        "CRIU opens the recorded path to set the watch again, and cannot",
        Remedy.PROVIDE_PATH,
    ),
    _fsnotify(
        "restore-mntns-root",
        rb"Failed to get mount namespace root for (?:path hint|remap) \(mnt_id "
        + _MNT
        + rb" path (?P<path>.{0,4096})\)",
        Role.CAUSE,
        "the mount of the watched file is in a mount namespace that was not restored",
        Remedy.MOUNT,
        _NEW,
    ),
    _fsnotify(
        "restore-wd-path",
        rb"Failed to get path for (?:inotify wd " + _WD + rb"|fanotify mark) \(" + _DEV_INO,
        Role.NAMES,
        "the watch that could not be set again",
        Remedy.PROVIDE_PATH,
        _NEW,
    ),
    _fsnotify(
        "restore-wd",
        rb"Failed to restore (?:inotify wd " + _WD + rb"|fanotify mark) for id " + _ID,
        Role.NAMES,
        "the watch that could not be set again",
        versions=_NEW,
    ),
    _fsnotify(
        "add-watch-refused",
        _CANNOT
        + rb"add (?:watch for |inotify watch for fd \d{1,10} wd "
        + _WD
        + rb" \("
        + _DEV_INO
        + rb"|inotify watch)",
        Role.CAUSE,
        "the kernel refused the watch",
        Remedy.LIMIT,
    ),
    _fsnotify(
        "next-wd-refused",
        _CANNOT + rb"set next inotify wd(?: to " + _WD + rb" \(" + _DEV_INO + rb")?",
        Role.CAUSE,
        "the kernel did not give the watch its old number",
        Remedy.IMAGES,
    ),
    _fsnotify(
        "wd-unsorted",
        rb"Unsorted (?:inotify )?watch ",
        Role.CAUSE,
        "the kernel gave the watch another number than before the dump, so the images are not in "
        "order",
        Remedy.IMAGES,
    ),
    _fsnotify(
        "instance-refused",
        _CANNOT + rb"create inotify (?:fd for id|for) " + _ID,
        Role.CAUSE,
        "the kernel refused an inotify instance",
        Remedy.LIMIT,
    ),
    _fsnotify(
        "group-refused",
        _CANNOT + rb"init fanotify (?:mark|for id " + _ID + rb")",
        Role.CAUSE,
        "the kernel refused a fanotify group",
        Remedy.LIMIT,
    ),
    _fsnotify(
        "mark-refused",
        rb"(?:Adding fanotify (?:ignored-)?mask|Failed to add fanotify (?:ignored-)?mask) ",
        Role.CAUSE,
        "the kernel refused the mark",
        Remedy.LIMIT,
    ),
    _fsnotify(
        "mark-type",
        rb"Bad fsnotify mark type ",
        Role.CAUSE,
        "the images have a kind of mark that this CRIU does not know",
        Remedy.IMAGES,
    ),
    _fsnotify(
        "instance-missing",
        _CANNOT + rb"find (?:ino|fano)tify with id " + _ID,
        Role.CAUSE,
        "the images have a watch without its instance",
        Remedy.IMAGES,
    ),
    _fsnotify(
        "mark-allocation",
        rb"Failed to allocate (?:ino|fano)tify mark for id " + _ID,
        Role.CAUSE,
        "memory ran out",
        Remedy.MEMORY,
        _NEW,
    ),
)

_STEPS = (
    _fsnotify(
        "inode", rb"wd: wd " + _WD + rb" s_dev " + _DEV + rb" i_ino" + _INO, Role.STEP, "a watch"
    ),
    _fsnotify("mark", rb"mark: s_dev " + _DEV + rb" i_ino" + _INO, Role.STEP, "a fanotify mark"),
    _fsnotify(
        "mount-mark", rb"mark: s_dev " + _DEV + rb" mnt_id {1,2}" + _MNT, Role.STEP, "a mount mark"
    ),
    _fsnotify(
        "handle",
        rb"\[fhandle\] bytes (?:0x)?(?P<bytes>[0-9a-f]{1,8}) type (?:0x)?(?P<type>[0-9a-f]{1,8})"
        rb" __handle (?:0x)?(?P<low>[0-9a-f]{1,16}):(?:0x)?(?P<high>[0-9a-f]{1,16})",
        Role.STEP,
        "its file handle",
    ),
    _fsnotify("handle-opens", rb"Handle " + _KEY + rb" is openable", Role.STEP, "the handle opens"),
    _fsnotify(
        "path-recorded",
        rb"Dumping " + _PATH + rb" as path for handle",
        Role.STEP,
        "the path that the dump has",
    ),
    _fsnotify("opening", rb"Opening fhandle ", Role.STEP, "CRIU opens a handle"),
    _fsnotify("trying", rb"Trying via mntid ", Role.STEP, "CRIU tries one mount"),
    _fsnotify("link", rb"link as (?P<path>.{0,4096})", Role.STEP, "the name that the kernel has"),
    _fsnotify(
        "tried-path",
        rb"openable \(inode (?P<match>match|don't match)\) as (?P<path>.{0,4096})",
        Role.STEP,
        "whether that name leads to the inode",
    ),
    _fsnotify(
        "tried-mount",
        rb"not openable as (?P<path>.{0,4096})",
        Role.STEP,
        "a mount that cannot open it",
    ),
    _fsnotify(
        "descriptor", rb"id " + _ID + rb" flags ", Role.STEP, "an inotify or fanotify descriptor"
    ),
    _fsnotify("collected", rb"Collected id ", Role.STEP, "a descriptor in the images"),
    _fsnotify(
        "restoring-wd",
        rb"Restore " + _WD + rb" wd for " + _ID,
        Role.STEP,
        "CRIU sets a watch again",
    ),
    _fsnotify("restored-wd", rb" ?(?:0x)?[0-9a-f]{1,8} wd for ", Role.STEP, "a watch is set again"),
    _fsnotify(
        "restoring-group", rb"Restore fanotify for " + _ID, Role.STEP, "CRIU sets a mark again"
    ),
    _fsnotify(
        "restoring",
        rb"Restore (?:ino|fano)tify watch for " + _KEY,
        Role.STEP,
        "CRIU opened the watched file",
    ),
    _fsnotify(
        "path-hint",
        rb"Restore with path hint -?\d{1,10}:(?P<path>.{0,4096})",
        Role.STEP,
        "the path of the dump",
    ),
    _fsnotify(
        "mask-filtered", rb"filter event mask ", Role.STEP, "bits that the kernel sets itself"
    ),
)

_IRMAP = (
    _irmap(
        "entry-stale",
        rb"Can't stat " + _PATH + _WHY,
        Role.HARMLESS,
        "an entry of irmap-cache, or one of CRIU's hints, does not exist. If CRIU finds no other "
        "path, another error follows",
    ),
    _irmap(
        "hint-missing",
        rb"Can't open " + _PATH + _WHY,
        Role.HARMLESS,
        "one of CRIU's hints is absent",
    ),
    _irmap(
        "scan-opendir",
        rb"Can't opendir " + _PATH + _WHY,
        Role.HARMLESS,
        "CRIU's scan stopped at a directory that it cannot open",
        Remedy.HOOK,
    ),
    _irmap(
        "scan-readdir",
        rb"Readdir failed" + _WHY,
        Role.HARMLESS,
        "CRIU's scan stopped at a directory that it cannot read",
        Remedy.HOOK,
    ),
    _irmap(
        "pre-dump-unresolved",
        rb"Failed to resolve " + _KEY,
        Role.CAUSE,
        "criu pre-dump found no path for this watch, so it wrote no irmap-cache",
        Remedy.PRE_DUMP,
    ),
    _irmap(
        "irmap-memory",
        rb"[a-z_]{1,40}: Can't allocate \d{1,20} bytes",
        Role.CAUSE,
        "memory ran out",
        Remedy.MEMORY,
    ),
    _irmap("resolving", rb"Resolving " + _KEY + rb" path", Role.STEP, "CRIU asks irmap"),
    _irmap("found", rb"Found " + _PATH + rb" in cache", Role.STEP, "irmap-cache had the path"),
    _irmap("scanned", rb"Scanned " + _PATH, Role.STEP, "CRIU's scan found the path"),
    _irmap("scanning", rb"Scanning " + _PATH + rb" hint", Role.STEP, "CRIU scans a directory"),
    _irmap("refill", rb"Refilling ", Role.STEP, "CRIU reads a directory"),
    _irmap("refresh", rb"Refresh stat for ", Role.STEP, "CRIU looks at a file of its scan"),
    _irmap(
        "revalidate", rb"Revalidate stat for ", Role.STEP, "CRIU checks an entry of irmap-cache"
    ),
    _irmap(
        "entry-invalid",
        _KEY + rb" is invalid",
        Role.HARMLESS,
        "CRIU dropped an entry of irmap-cache that names another inode now",
    ),
    _irmap("pre-cache", rb"Pre-cache " + _KEY + rb" -> ", Role.STEP, "an entry of irmap-cache"),
    _irmap("cache-written", rb"Irmap cache " + _KEY + rb" -> ", Role.STEP, "an entry is written"),
    _irmap("queue", rb"Queue " + _KEY + rb" for pre-dump", Role.STEP, "pre-dump remembers a watch"),
    _irmap("checking", rb"checking " + _KEY, Role.STEP, "pre-dump looks for a path"),
    _irmap("pre-dump-runs", rb"Running irmap pre-dump", Role.STEP, "pre-dump looks for all paths"),
    _irmap("searching", rb"Searching irmap cache in ", Role.STEP, "CRIU looks for irmap-cache"),
    _irmap("no-cache", rb"No irmap cache", Role.HARMLESS, "there is no irmap-cache"),
    _irmap("cache-opened", rb"\.\.\. done", Role.STEP, "irmap-cache is there"),
    _irmap("loading", rb"Loading irmap cache", Role.STEP, "CRIU reads irmap-cache"),
)

_FDINFO = (
    Message(
        "no-handle",
        "proc_parse.c",
        rb"parse_fdinfo_pid_s: error parsing \[(?:inotify wd:" + _WD + rb"|fanotify) ino:(?P<ino>"
        rb"[0-9a-f]{1,16}) sdev:" + _DEV,
        Role.CAUSE,
        "the kernel shows no file handle for this watch: overlayfs before Linux 6.6, or overlayfs "
        "with nfs_export=on and a directory without a cached name",
        Remedy.HOOK,
    ),
    Message(
        "fdinfo-unknown",
        "proc_parse.c",
        rb"parse_fdinfo_pid_s: error parsing \[(?:ino|fano)tify ",
        Role.CAUSE,
        "CRIU does not understand what the kernel shows of this watch",
        Remedy.CHECK,
    ),
)

_CACHE = tuple(
    Message(name, "image.c", pattern, Role.CAUSE, meaning, Remedy.REMOVE_CACHE)
    for name, pattern, meaning in (
        ("cache-empty", rb"Unexpected EOF", "irmap-cache is empty"),
        (
            "cache-magic",
            rb"(?:Head magic|Magic) doesn't match for irmap-cache",
            "the file irmap-cache is no cache image",
        ),
        (
            "cache-cut",
            rb"Read \d{1,10} bytes while \d{1,10} expected (?:from|on) (?:.{0,4096}/)?irmap-cache",
            "irmap-cache is cut off",
        ),
        (
            "cache-entry",
            rb"Failed unpacking object .{0,200} from (?:.{0,4096}/)?irmap-cache",
            "irmap-cache has a damaged entry",
        ),
    )
)

_SCRIPTS = (
    Message(
        "script-missing",
        "action-scripts.c",
        rb'execvp\("(?P<path>.{1,4096}?)", \.\.\.\) failed' + _WHY,
        Role.CAUSE,
        "CRIU's configuration names an action script that cannot be started",
        Remedy.REINSTALL,
    ),
    Message(
        "script-failed",
        "action-scripts.c",
        rb"(?:Script (?P<path>.{1,4096}?) exited with|One of more action scripts failed"
        rb"|Pre dump script failed with)",
        Role.CAUSE,
        "an action script ended with an exit code other than 0, and that fails the dump",
        Remedy.SCRIPT,
    ),
)

MESSAGES: tuple[Message, ...] = (
    *_DUMP,
    *_WALK,
    *_RESTORE,
    *_STEPS,
    *_IRMAP,
    *_FDINFO,
    *_CACHE,
    *_SCRIPTS,
)
"""In the order in which they are tried: the first that matches counts."""


_PREFIXES = {"fsnotify.c": b"fsnotify: ", "irmap.c": b"irmap: "}


def find_message(text: bytes, *, in_cache: bool) -> tuple[Message, re.Match[bytes]] | None:
    """The message that a text is, or None. `in_cache`: whether CRIU is reading irmap-cache."""
    part, start = _part_of(text)
    for message in _candidates(part, text[start : start + 1]):
        if message.name == "cache-empty" and not in_cache:
            continue
        if found := _compiled(message.pattern).match(text, start):
            return message, found
    return None


def _part_of(text: bytes) -> tuple[str, int]:
    # And where the message begins, behind the prefix and the tabs.
    for part, prefix in _PREFIXES.items():
        if text.startswith(prefix):
            rest = text[len(prefix) : len(prefix) + 8]
            return part, len(prefix) + len(rest) - len(rest.lstrip(b"\t"))
    return "", 0


@cache
def _candidates(part: str, first: bytes) -> tuple[Message, ...]:
    # A log has millions of lines, so each is compared only with messages of the same first letter.
    return tuple(
        one
        for one in MESSAGES
        if (one.part if one.part in _PREFIXES else "") == part
        and (not one.pattern[:1].isalpha() or one.pattern[:1] == first)
    )


@cache
def _compiled(pattern: bytes) -> re.Pattern[bytes]:
    return re.compile(pattern, re.DOTALL)
