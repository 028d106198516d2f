"""A line of each message of CRIU's fsnotify.c and irmap.c, and of those near them.

Each has the form in which CRIU prints it: 4.1 and 4.2 first, 4.3 behind it where it differs. Most
of these messages are also in logs that real CRIU writes in tests/criu. BUILT has the others: no
test makes CRIU print them, and their lines are built after the format strings in the programs.
"""

from __future__ import annotations

__all__ = ["BUILT", "LINES"]

LINES = {
    "no-path": ["fsnotify: \tCan't dump that handle"],
    "no-path-tmpfs": [
        "fsnotify: Can't find suitable path for handle (dev 0x2c ino 0xe): -2",
    ],
    "not-mounted": ["fsnotify: Unable to lookup a mount by dev 0x2c"],
    "mark-mount-unknown": [
        "fsnotify: Can't find mnt_id 0x2a",
        "fsnotify: Can't find mount mnt_id 0x2a",
        "fsnotify: Can't find mnt_id 0x2a for fanotify mark (mask 0x20)",
        "fsnotify: Can't find mount mnt_id 0x2a for fanotify mark (mask 0x20)",
    ],
    "stat-failed": ["fsnotify: Can't stat on srv/a: No such file or directory"],
    "fdinfo-unreadable": [
        "fsnotify: Failed to parse fdinfo for inotify (pid 4711 lfd 5)",
        "fsnotify: Failed to parse fdinfo for fanotify (pid 4711 lfd 5)",
        "fsnotify: Failed to parse fdinfo for inotify id 0x16",
        "fsnotify: Failed to parse fdinfo for fanotify id 0x16",
    ],
    "wd-without-path": [
        "fsnotify: Failed to check handle for inotify wd 0x3 (dev 0x2c ino 0xe mask 0x20)",
    ],
    "queue-failed": [
        "fsnotify: Failed to queue irmap cache for inotify wd 0x3 (dev 0x2c ino 0xe)",
        "fsnotify: Failed to queue irmap cache for fanotify mark (dev 0x2c ino 0xe mask 0x20)",
    ],
    "events-dropped": [
        "fsnotify: The 0x000016 inotify events will be dropped",
        "fsnotify: The 0x000016 fanotify events will be dropped",
    ],
    "child-bit": [
        "fsnotify: \t\tDetected FS_EVENT_ON_CHILD bit in mask (will be ignored on restore)",
    ],
    "mount-not-opened": ["fsnotify: Can't open mount for s_dev 2c, continue"],
    "handle-not-opened": ["fsnotify: \tHandle 0x2c:0xe cannot be opened"],
    "no-memory": [
        "fsnotify: check_one_wd: Can't allocate 4096 bytes",
        "fsnotify: OOM building overlay path for ino e",
    ],
    "bug": ["fsnotify: BUG at criu/fsnotify.c:333"],
    "walk-begins": ["fsnotify: \t\tHandle open failed on overlay, trying dir walk for e"],
    "walk-found": ["fsnotify: overlay walk: found ino e after 1234 entries"],
    "walk-long": [
        (
            "fsnotify: overlay walk: examined 100000 entries so far looking for ino e, mount may "
            "be large"
        ),
    ],
    "walk-entry": ["fsnotify: overlay walk: fstatat(./srv/a) failed: No such file or directory"],
    "walk-readdir": ["fsnotify: overlay walk: readdir failed on ./srv: Input/output error"],
    "walk-open": [
        "fsnotify: Can't open overlay mountpoint ./srv: Permission denied",
        "fsnotify: Can't fdopendir for overlay walk: Cannot allocate memory",
    ],
    "restore-no-path": [
        "fsnotify: Unable to open (null): Stale file handle",
        "fsnotify: Unable to open inotify by handle (dev 0x2c ino 0xe): Stale file handle",
        "fsnotify: Unable to open fanotify by handle (dev 0x2c ino 0xe): Stale file handle",
    ],
    "restore-remap": [
        (
            "fsnotify: Unable to open inotify via remap srv/a.cr.1.ghost (dev 0x2c ino 0xe): "
            "No such file or directory"
        ),
    ],
    "restore-mount-point": [
        "fsnotify: Unable to open (null): Bad address",
        "fsnotify: Unable to open mount point ./srv (mnt_id 0x2a): No such file or directory",
    ],
    "restore-path-missing": [
        "fsnotify: Unable to open /srv/a (b): No such file or directory",
        (
            "fsnotify: Unable to open inotify via path srv/a (b) (dev 0x2c ino 0xe): "
            "No such file or directory"
        ),
        (
            "fsnotify: Unable to open fanotify via path srv/a (b) (dev 0x2c ino 0xe): "
            "No such file or directory"
        ),
    ],
    "restore-mntns-root": [
        "fsnotify: Failed to get mount namespace root for path hint (mnt_id 42 path srv/a)",
        "fsnotify: Failed to get mount namespace root for remap (mnt_id 0x2a path srv/a)",
    ],
    "restore-wd-path": [
        "fsnotify: Failed to get path for inotify wd 0x3 (dev 0x2c ino 0xe mask 0x20)",
        "fsnotify: Failed to get path for fanotify mark (dev 0x2c ino 0xe mask 0x20)",
    ],
    "restore-wd": [
        "fsnotify: Failed to restore inotify wd 0x3 for id 0x000016",
        "fsnotify: Failed to restore fanotify mark for id 0x000016",
    ],
    "add-watch-refused": [
        "fsnotify: Can't add watch for 0x5 with 0x3: No space left on device",
        (
            "fsnotify: Can't add inotify watch for fd 5 wd 0x3 (dev 0x2c ino 0xe mask 0x20): "
            "No space left on device"
        ),
    ],
    "next-wd-refused": [
        "fsnotify: Can't set next inotify wd: Invalid argument",
        "fsnotify: Can't set next inotify wd to 0x3 (dev 0x2c ino 0xe): Invalid argument",
    ],
    "wd-unsorted": [
        "fsnotify: Unsorted watch 0x4 found for 0x5 with 0x3",
        "fsnotify: Unsorted inotify watch 0x4 found (expected 0x3, dev 0x2c ino 0xe)",
    ],
    "instance-refused": [
        "fsnotify: Can't create inotify for 0x000016: Too many open files",
        "fsnotify: Can't create inotify fd for id 0x000016 (flags 0x800): Too many open files",
    ],
    "group-refused": [
        "fsnotify: Can't init fanotify mark (-1): Too many open files",
        "fsnotify: Can't init fanotify for id 0x000016 (flags 0 evflags 0): Too many open files",
    ],
    "mark-refused": [
        "fsnotify: Adding fanotify mask 0x20 on 0x16//srv/a failed (-1)",
        "fsnotify: Adding fanotify ignored-mask 0x20 on 0x16//srv/a failed (-1)",
        (
            "fsnotify: Failed to add fanotify mask 0x20 on id 0x16 (dev 0x2c path /srv/a): "
            "Invalid argument"
        ),
        (
            "fsnotify: Failed to add fanotify ignored-mask 0x20 on id 0x16 (dev 0x2c path /srv/a): "
            "Invalid argument"
        ),
    ],
    "mark-type": [
        "fsnotify: Bad fsnotify mark type 0x7",
        "fsnotify: Bad fsnotify mark type 0x7 (mask 0x20)",
    ],
    "instance-missing": [
        "fsnotify: Can't find inotify with id 0x000016",
        "fsnotify: Can't find fanotify with id 0x000016",
        "fsnotify: Can't find inotify with id 0x000016 for wd 0x3",
        "fsnotify: Can't find fanotify with id 0x000016 for mark (mask 0x20)",
    ],
    "mark-allocation": [
        "fsnotify: Failed to allocate fanotify mark for id 0x000016",
        "fsnotify: Failed to allocate inotify mark for id 0x000016 wd 0x3",
    ],
    "inode": [
        "fsnotify: wd: wd 0x000003 s_dev 0x00002c i_ino              0xe mask 0x000020",
    ],
    "mark": ["fsnotify: mark: s_dev 0x00002c i_ino 0x0000000000000e mask 0x000020"],
    "mount-mark": ["fsnotify: mark: s_dev 0x00002c mnt_id  0x00002a mask 0x000020"],
    "handle": [
        (
            "fsnotify: \t[fhandle] bytes 0x000008 type 0x000001 __handle "
            "0x000c2f1a0000000e:000000000000000000"
        ),
    ],
    "handle-opens": ["fsnotify: \tHandle 0x2c:0xe is openable"],
    "path-recorded": ["fsnotify: \tDumping /srv/a as path for handle"],
    "opening": ["fsnotify: Opening fhandle 2c:e..."],
    "trying": ["fsnotify: \t\tTrying via mntid 42 root / ns_mountpoint @./srv (21)"],
    "link": ["fsnotify: \t\t\tlink as srv/a"],
    "tried-path": [
        "fsnotify: \t\t\topenable (inode match) as srv/a",
        "fsnotify: \t\t\topenable (inode don't match) as srv/a",
    ],
    "tried-mount": ["fsnotify: \t\t\tnot openable as srv/a (No such file or directory)"],
    "descriptor": ["fsnotify: id 0x000016 flags 0x000800"],
    "collected": ["fsnotify: Collected id 0x000016 flags 0x000800"],
    "restoring-wd": ["fsnotify: \tRestore 0x3 wd for 0x000016"],
    "restored-wd": ["fsnotify: \t 0x3 wd for 0x000016 is restored"],
    "restoring-group": ["fsnotify: \tRestore fanotify for 0x000016"],
    "restoring": [
        "fsnotify: \t\tRestore inotify watch for 0x00002c:0x0000000000000e (via /srv/a)",
        "fsnotify: \t\tRestore fanotify watch for 0x00002c:0x0000000000000e (via a -> /srv/a)",
    ],
    "path-hint": ["fsnotify: \t\tRestore with path hint -1:srv/a"],
    "mask-filtered": ["fsnotify: \t\tfilter event mask 0x8000020 -> 0x20"],
    "entry-stale": ["irmap: Can't stat /srv/a: No such file or directory"],
    "hint-missing": ["irmap: Can't open /etc: No such file or directory"],
    "scan-opendir": ["irmap: Can't opendir /srv: Cannot allocate memory"],
    "scan-readdir": ["irmap: Readdir failed: Input/output error"],
    "pre-dump-unresolved": ["irmap: Failed to resolve 2c:e"],
    "irmap-memory": ["irmap: irmap_scan: Can't allocate 48 bytes"],
    "resolving": ["irmap: Resolving 2c:e path"],
    "found": ["irmap: \tFound /srv/a in cache"],
    "scanned": ["irmap: \tScanned /srv/a"],
    "scanning": ["irmap: Scanning /etc hint"],
    "refill": ["irmap: Refilling /etc dir"],
    "refresh": ["irmap: Refresh stat for /etc"],
    "revalidate": ["irmap: Revalidate stat for /srv/a"],
    "entry-invalid": ["irmap: \t2c:e is invalid"],
    "pre-cache": ["irmap: Pre-cache 2c:e -> /srv/a"],
    "cache-written": ["irmap: Irmap cache 2c:e -> /srv/a"],
    "queue": ["irmap: Queue 2c:e for pre-dump"],
    "checking": ["irmap: \tchecking 2c:e"],
    "pre-dump-runs": ["irmap: Running irmap pre-dump"],
    "searching": [
        "irmap: Searching irmap cache in work dir",
        "irmap: Searching irmap cache in parent",
    ],
    "no-cache": ["irmap: No irmap cache"],
    "cache-opened": ["irmap: ... done"],
    "loading": ["irmap: Loading irmap cache"],
    "no-handle": [
        (
            "parse_fdinfo_pid_s: error parsing [inotify wd:3 ino:e sdev:2c mask:20 "
            "ignored_mask:0 ] for 8: Resource temporarily unavailable"
        ),
        (
            "parse_fdinfo_pid_s: error parsing [fanotify ino:e sdev:2c mflags:0 mask:20 "
            "ignored_mask:0 ] for 9: Success"
        ),
    ],
    "fdinfo-unknown": ["parse_fdinfo_pid_s: error parsing [fanotify mnt_ns:1 ] for 10: Success"],
    "cache-empty": ["Unexpected EOF"],
    "cache-magic": [
        "Head magic doesn't match for irmap-cache",
        "Magic doesn't match for irmap-cache",
    ],
    "cache-cut": [
        "Read 8 bytes while 24 expected from work/irmap-cache",
        "Read 2 bytes while 4 expected on /srv/img/irmap-cache",
    ],
    "cache-entry": ["Failed unpacking object 0x55d0 from work/irmap-cache"],
    "script-missing": ['execvp("/usr/bin/hook", ...) failed: No such file or directory'],
    "script-failed": [
        "Script /usr/bin/hook exited with 1",
        "One of more action scripts failed",
        "Pre dump script failed with 1!",
    ],
}
"""The lines of each message, by its name, without time and level."""

BUILT = {
    # `criu pre-dump`, which needs a kernel with soft-dirty tracking:
    *("cache-written", "checking", "pre-dump-runs", "pre-dump-unresolved", "queue", "queue-failed"),
    # Memory that runs out, disks that fail, errors in CRIU:
    *("bug", "irmap-memory", "mark-allocation", "no-memory", "scan-opendir", "scan-readdir"),
    *("walk-open", "walk-readdir"),
    # A rename at the wrong moment:
    *("hint-missing", "stat-failed", "walk-entry"),
    # An overlay with more than 100,000 entries:
    "walk-long",
    # Other kernels, or images of an older CRIU:
    *("child-bit", "fdinfo-unknown", "instance-missing", "mark-type", "mask-filtered"),
    "wd-unsorted",
    # A fanotify mark on a mount of another namespace:
    "mark-mount-unknown",
    # Nested mount namespaces, and a file that a restore makes again:
    *("mount-not-opened", "not-mounted", "restore-mntns-root", "restore-remap"),
}
"""The messages that no test makes CRIU print."""
