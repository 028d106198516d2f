"""Every message of CRIU's fsnotify.c.

CRIU 4.1 and 4.2 have the same messages; 4.3 has others for most errors, and messages about its walk
of an overlay.

Sources: criu/fsnotify.c of CRIU 4.1.1 and 4.2; the texts in the programs of 4.2.1 and 4.3.
"""

from __future__ import annotations

from irmapdb.criu.explain.message_kinds import (
    ALL,
    ANY_PATH,
    CANNOT,
    DEV,
    DEV_INO,
    ID,
    INO,
    KEY,
    MNT,
    NEW,
    PATH,
    WD,
    WHY,
    Message,
    Remedy,
    Role,
)

__all__ = ["FSNOTIFY"]


def _fsnotify(
    name: str,
    pattern: bytes,
    role: Role,
    meaning: str,
    remedy: Remedy = Remedy.NONE,
    versions: str = ALL,
) -> Message:
    return Message(name, "fsnotify.c", pattern, role, meaning, remedy, versions)


_DUMP = (
    _fsnotify(
        "no-path",
        CANNOT + rb"dump that handle",
        Role.CAUSE,
        "CRIU found no path for this watch: its file handle does not open (or --force-irmap is "
        "set), and neither irmap-cache nor CRIU's own scan has the inode",
        Remedy.HOOK,
    ),
    _fsnotify(
        "no-path-tmpfs",
        CANNOT + rb"find suitable path for handle \(" + DEV_INO,
        Role.CAUSE,
        "the watched file is on tmpfs or devtmpfs. Its handle opens, but has no path: the file "
        "was deleted, or the watch is on a symbolic link itself, or the file is a mount of its "
        "own beside a mount of the same tmpfs. CRIU does not ask irmap-cache here",
        Remedy.TMPFS,
    ),
    _fsnotify(
        "not-mounted",
        rb"Unable to lookup a mount by dev " + DEV,
        Role.CAUSE,
        "the watched file is on a filesystem that is not mounted in the mount namespace of the "
        "root task",
        Remedy.MOUNT,
    ),
    _fsnotify(
        "mark-mount-unknown",
        CANNOT + rb"find (?:mount )?mnt_id " + MNT,
        Role.CAUSE,
        "a fanotify mark is on a mount that the tree does not have. Such a mark has no path, so "
        "irmapdb cannot help",
        Remedy.MOUNT,
    ),
    _fsnotify(
        "stat-failed",
        CANNOT + rb"stat on " + ANY_PATH + WHY,
        Role.CAUSE,
        "CRIU opened a handle and got a path for it, but the path cannot be read",
        Remedy.CHECK,
    ),
    _fsnotify(
        "fdinfo-unreadable",
        rb"Failed to parse fdinfo for (?:ino|fano)tify (?:\(pid (?P<pid>\d{1,10}) lfd "
        rb"(?P<fd>\d{1,10})\)|id " + ID + rb")",
        Role.CAUSE,
        "CRIU could not read the watches in /proc/PID/fdinfo. On a kernel before 6.6 a watch on "
        "overlayfs has no file handle there",
        Remedy.KERNEL,
        NEW,
    ),
    _fsnotify(
        "wd-without-path",
        rb"Failed to check handle for inotify wd " + WD + rb" \(" + DEV_INO,
        Role.NAMES,
        "the watch that CRIU could not dump",
        Remedy.HOOK,
        NEW,
    ),
    _fsnotify(
        "queue-failed",
        rb"Failed to queue irmap cache for (?:inotify wd " + WD + rb"|fanotify mark) \(" + DEV_INO,
        Role.CAUSE,
        "criu pre-dump could not remember this watch, because memory ran out",
        Remedy.MEMORY,
        NEW,
    ),
    _fsnotify(
        "events-dropped",
        rb"The " + ID + rb" (?:ino|fano)tify events will be dropped",
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
        CANNOT + rb"open mount for s_dev " + DEV,
        Role.HARMLESS,
        "CRIU skips a mount that it cannot open, and tries the next mount of the filesystem",
    ),
    _fsnotify(
        "handle-not-opened",
        rb"Handle " + KEY + rb" cannot be opened",
        Role.HARMLESS,
        "no mount can open this handle, so CRIU asks irmap for the path",
    ),
    _fsnotify(
        "no-memory",
        rb"(?:[a-z_]{1,40}: Can't allocate \d{1,20} bytes|OOM building overlay path for ino"
        + INO
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
        rb"Handle open failed on overlay, trying dir walk for" + INO,
        Role.STEP,
        "CRIU 4.3 reads the whole overlay for this watch, with the tasks frozen",
        versions=NEW,
    ),
    _fsnotify(
        "walk-found",
        rb"overlay walk: found ino" + INO + rb" after (?P<entries>\d{1,20}) entries",
        Role.STEP,
        "the walk found the path",
        versions=NEW,
    ),
    _fsnotify(
        "walk-long",
        rb"overlay walk: examined (?P<entries>\d{1,20}) entries so far looking for ino" + INO,
        Role.LOSS,
        "CRIU 4.3 reads the whole overlay for each watch, with the tasks frozen, and does not ask "
        "irmap-cache first",
        versions=NEW,
    ),
    _fsnotify(
        "walk-entry",
        rb"overlay walk: fstatat\(" + ANY_PATH,
        Role.HARMLESS,
        "an entry vanished, or cannot be read, during the walk",
        versions=NEW,
    ),
    _fsnotify(
        "walk-readdir",
        rb"overlay walk: readdir failed on " + ANY_PATH + WHY,
        Role.CAUSE,
        "CRIU 4.3 could not read a directory in its walk of the overlay",
        Remedy.CHECK,
        NEW,
    ),
    _fsnotify(
        "walk-open",
        CANNOT
        + rb"(?:open overlay mountpoint "
        + ANY_PATH
        + rb"|fdopendir for overlay walk)"
        + WHY,
        Role.CAUSE,
        "CRIU 4.3 could not open a directory for its walk of the overlay",
        Remedy.CHECK,
        NEW,
    ),
)

_RESTORE = (
    _fsnotify(
        "restore-mount-point",
        rb"Unable to open (?:mount point (?P<path>.{0,4096}) \(mnt_id " + MNT + rb"|\(null\): Bad"
        rb" address)",
        Role.CAUSE,
        "a fanotify mark was on a mount that the restored tree does not have",
        Remedy.MOUNT,
    ),
    _fsnotify(
        "restore-no-path",
        rb"Unable to open (?:\(null\)|(?:ino|fano)tify by handle \(" + DEV_INO + rb"\))",
        Role.CAUSE,
        "the dump has no path for this watch, so CRIU opened the file by its handle. That works "
        "only on the same filesystem, and only if the root task was in a mount namespace of its "
        "own",
        Remedy.HOOK,
    ),
    _fsnotify(
        "restore-remap",
        rb"Unable to open (?:ino|fano)tify via remap (?P<path>.{0,4096}) \(" + DEV_INO,
        Role.CAUSE,
        "the watched file was deleted before the dump, and the copy that CRIU made of it could "
        "not be opened",
        Remedy.REMOVE_WATCH,
        NEW,
    ),
    _fsnotify(
        "restore-path-missing",
        rb"Unable to open (?:(?:ino|fano)tify via path )?(?P<path>[^ (].{0,4096}?)"
        rb"(?: \(" + DEV_INO + rb"\))?" + WHY,
        Role.CAUSE,
        "CRIU opens the recorded path to set the watch again, and cannot",
        Remedy.PROVIDE_PATH,
    ),
    _fsnotify(
        "restore-mntns-root",
        rb"Failed to get mount namespace root for (?:path hint|remap) \(mnt_id "
        + MNT
        + rb" path (?P<path>.{0,4096})\)",
        Role.CAUSE,
        "the mount of the watched file is in a mount namespace that was not restored",
        Remedy.MOUNT,
        NEW,
    ),
    _fsnotify(
        "restore-wd-path",
        rb"Failed to get path for (?:inotify wd " + WD + rb"|fanotify mark) \(" + DEV_INO,
        Role.NAMES,
        "the watch that could not be set again",
        Remedy.PROVIDE_PATH,
        NEW,
    ),
    _fsnotify(
        "restore-wd",
        rb"Failed to restore (?:inotify wd " + WD + rb"|fanotify mark) for id " + ID,
        Role.NAMES,
        "the watch that could not be set again",
        versions=NEW,
    ),
    _fsnotify(
        "add-watch-refused",
        CANNOT
        + rb"add (?:watch for |inotify watch for fd \d{1,10} wd "
        + WD
        + rb" \("
        + DEV_INO
        + rb"|inotify watch)",
        Role.CAUSE,
        "the kernel refused the watch",
        Remedy.LIMIT,
    ),
    _fsnotify(
        "next-wd-refused",
        CANNOT + rb"set next inotify wd(?: to " + WD + rb" \(" + DEV_INO + rb")?",
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
        CANNOT + rb"create inotify (?:fd for id|for) " + ID,
        Role.CAUSE,
        "the kernel refused an inotify instance",
        Remedy.LIMIT,
    ),
    _fsnotify(
        "group-refused",
        CANNOT + rb"init fanotify (?:mark|for id " + ID + rb")",
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
        CANNOT + rb"find (?:ino|fano)tify with id " + ID,
        Role.CAUSE,
        "the images have a watch without its instance",
        Remedy.IMAGES,
    ),
    _fsnotify(
        "mark-allocation",
        rb"Failed to allocate (?:ino|fano)tify mark for id " + ID,
        Role.CAUSE,
        "memory ran out",
        Remedy.MEMORY,
        NEW,
    ),
)

_STEPS = tuple(
    _fsnotify(name, pattern, Role.STEP, meaning)
    for name, pattern, meaning in (
        ("inode", rb"wd: wd " + WD + rb" s_dev " + DEV + rb" i_ino" + INO, "a watch"),
        ("mark", rb"mark: s_dev " + DEV + rb" i_ino" + INO, "a fanotify mark"),
        ("mount-mark", rb"mark: s_dev " + DEV + rb" mnt_id {1,2}" + MNT, "a mount mark"),
        (
            "handle",
            (
                rb"\[fhandle\] bytes (?:0x)?(?P<bytes>[0-9a-f]{1,8}) type "
                rb"(?:0x)?(?P<type>[0-9a-f]{1,8}) __handle (?:0x)?(?P<low>[0-9a-f]{1,16}):"
                rb"(?:0x)?(?P<high>[0-9a-f]{1,16})"
            ),
            "its file handle",
        ),
        ("handle-opens", rb"Handle " + KEY + rb" is openable", "the handle opens"),
        (
            "path-recorded",
            rb"Dumping " + PATH + rb" as path for handle",
            "the path that the dump has",
        ),
        ("opening", rb"Opening fhandle ", "CRIU opens a handle"),
        ("trying", rb"Trying via mntid ", "CRIU tries one mount"),
        ("link", rb"link as (?P<path>.{0,4096})", "the name that the kernel has"),
        (
            "tried-path",
            rb"openable \(inode (?P<match>match|don't match)\) as (?P<path>.{0,4096})",
            "whether that name leads to the inode",
        ),
        ("tried-mount", rb"not openable as (?P<path>.{0,4096})", "a mount that cannot open it"),
        ("descriptor", rb"id " + ID + rb" flags ", "an inotify or fanotify descriptor"),
        ("collected", rb"Collected id ", "a descriptor in the images"),
        ("restoring-wd", rb"Restore " + WD + rb" wd for " + ID, "CRIU sets a watch again"),
        ("restored-wd", rb" ?(?:0x)?[0-9a-f]{1,8} wd for ", "a watch is set again"),
        ("restoring-group", rb"Restore fanotify for " + ID, "CRIU sets a mark again"),
        (
            "restoring",
            rb"Restore (?:ino|fano)tify watch for " + KEY,
            "CRIU opened the watched file",
        ),
        (
            "path-hint",
            rb"Restore with path hint -?\d{1,10}:(?P<path>.{0,4096})",
            "the path of the dump",
        ),
        ("mask-filtered", rb"filter event mask ", "bits that the kernel sets itself"),
    )
)

FSNOTIFY = (*_DUMP, *_WALK, *_RESTORE, *_STEPS)
