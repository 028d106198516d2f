"""Every message of CRIU's irmap.c, and those about fdinfo, `irmap-cache` and the hook.

CRIU 4.1 to 4.3 have the same ones.

Sources: criu/irmap.c, criu/proc_parse.c, criu/image.c and criu/action-scripts.c of CRIU 4.1.1 and
4.2; the texts in the programs of 4.2.1 and 4.3.
"""

from __future__ import annotations

from irmapdb.criu.explain.message_kinds import DEV, KEY, PATH, WD, WHY, Message, Remedy, Role

__all__ = ["IRMAP", "OTHERS"]


def _irmap(
    name: str, pattern: bytes, role: Role, meaning: str, remedy: Remedy = Remedy.NONE
) -> Message:
    return Message(name, "irmap.c", pattern, role, meaning, remedy)


_IRMAP = (
    _irmap(
        "entry-stale",
        rb"Can't stat " + PATH + WHY,
        Role.HARMLESS,
        "an entry of irmap-cache, or one of CRIU's hints, does not exist. If CRIU finds no other "
        "path, another error follows",
    ),
    _irmap(
        "hint-missing",
        rb"Can't open " + PATH + WHY,
        Role.HARMLESS,
        "one of CRIU's hints is absent",
    ),
    _irmap(
        "scan-opendir",
        rb"Can't opendir " + PATH + WHY,
        Role.HARMLESS,
        "CRIU's scan stopped at a directory that it cannot open",
        Remedy.HOOK,
    ),
    _irmap(
        "scan-readdir",
        rb"Readdir failed" + WHY,
        Role.HARMLESS,
        "CRIU's scan stopped at a directory that it cannot read",
        Remedy.HOOK,
    ),
    _irmap(
        "pre-dump-unresolved",
        rb"Failed to resolve " + KEY,
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
    _irmap(
        "entry-invalid",
        KEY + rb" is invalid",
        Role.HARMLESS,
        "CRIU dropped an entry of irmap-cache that names another inode now",
    ),
    _irmap("no-cache", rb"No irmap cache", Role.HARMLESS, "there is no irmap-cache"),
)

_IRMAP_STEPS = tuple(
    _irmap(name, pattern, Role.STEP, meaning)
    for name, pattern, meaning in (
        ("resolving", rb"Resolving " + KEY + rb" path", "CRIU asks irmap"),
        ("found", rb"Found " + PATH + rb" in cache", "irmap-cache had the path"),
        ("scanned", rb"Scanned " + PATH, "CRIU's scan found the path"),
        ("scanning", rb"Scanning " + PATH + rb" hint", "CRIU scans a directory"),
        ("refill", rb"Refilling ", "CRIU reads a directory"),
        ("refresh", rb"Refresh stat for ", "CRIU looks at a file of its scan"),
        ("revalidate", rb"Revalidate stat for ", "CRIU checks an entry of irmap-cache"),
        ("pre-cache", rb"Pre-cache " + KEY + rb" -> ", "an entry of irmap-cache"),
        ("cache-written", rb"Irmap cache " + KEY + rb" -> ", "an entry is written"),
        ("queue", rb"Queue " + KEY + rb" for pre-dump", "pre-dump remembers a watch"),
        ("checking", rb"checking " + KEY, "pre-dump looks for a path"),
        ("pre-dump-runs", rb"Running irmap pre-dump", "pre-dump looks for all paths"),
        ("searching", rb"Searching irmap cache in ", "CRIU looks for irmap-cache"),
        ("cache-opened", rb"\.\.\. done", "irmap-cache is there"),
        ("loading", rb"Loading irmap cache", "CRIU reads irmap-cache"),
    )
)

IRMAP = (*_IRMAP, *_IRMAP_STEPS)

_FDINFO = (
    Message(
        "no-handle",
        "proc_parse.c",
        rb"parse_fdinfo_pid_s: error parsing \[(?:inotify wd:" + WD + rb"|fanotify) ino:(?P<ino>"
        rb"[0-9a-f]{1,16}) sdev:" + DEV,
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
        "CRIU cannot parse the line of this watch in fdinfo",
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
        rb'execvp\("(?P<path>.{1,4096}?)", \.\.\.\) failed' + WHY,
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

OTHERS = (*_FDINFO, *_CACHE, *_SCRIPTS)
