"""Decides on one watch as CRIU does, from facts: pure functions, in CRIU's order.

`decide` returns the prediction, or the look that it needs first. The caller takes only that look,
because a look can change the result of CRIU afterwards.

Facts from criu/fsnotify.c, criu/irmap.c and criu/proc_parse.c of CRIU 4.1.1 and 4.2, and from
measurements with 4.1.1. For 4.3, from measurements: the walk of an overlay comes before irmap, and
compares st_dev and st_ino. If the walk finds nothing, the watch is dumped without a path, unless
irmap is forced.
"""

from __future__ import annotations

import shlex
import string

from irmapdb.criu.check.facts import Look
from irmapdb.criu.check.verdicts import CriuOutcome, Prediction, ScanAdvice, WatchVerdict
from irmapdb.durations import format_estimate
from irmapdb.model import is_fuse, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from irmapdb.criu.check.facts import Call, Facts, Found, HandleLook, OverlayLook, SearchLook
    from irmapdb.kernel.proc.holders import Holder

__all__ = ["decide", "scan_below", "with_holder"]

_NEW_AT_EACH_MOUNT = frozenset({"tmpfs", "devtmpfs"})
"""Their inode numbers. There CRIU dumps no watch without a path."""

_GIVE_UP = "let the task remove the watch before the dump"

_CLOSE = "let the task remove the watch, or close the file, before the dump"

_MADE_AGAIN = "it was removed; a restore makes the directory again, with its watch"

_LINK = "it is a symbolic link, and CRIU opens the path that the kernel knows: it gets the target"

_BOUND = "it has no name left but a mount point"

_PLAIN = frozenset(string.ascii_letters + string.digits + string.punctuation + " ") - {"'", "\\"}

_ELSEWHERE = (
    "CRIU looks from the root task's mount namespace alone: mount it there, too, or let the task "
    "remove the watch before the dump"
)

_APART = (
    "keep the file on a filesystem of which the tree has no directory mount; with podman, use "
    "--runtime runc or --security-opt unmask=ALL"
)

_FORGETFUL = ("fuse", "virtiofs")

_FORGOTTEN = (
    "a FUSE server forgets the handle when no task uses the file any more, so a restore fails on "
    "it (unless the server can be exported over NFS)"
)

_HOST_MOUNTS = (
    "the root task is in CRIU's own mount namespace, so no restore finds it: the images have no "
    "mounts to open the handle through"
)


def decide(facts: Facts, call: Call) -> Prediction | Look:
    """The prediction for the watch, or the look that it needs first."""
    if facts.hopeless:
        return _fails(*facts.hopeless)
    if facts.unseen:
        return Prediction(WatchVerdict.UNKNOWN, CriuOutcome.UNKNOWN, *_reason(facts.unseen))
    handle = facts.handle
    if facts.identity.handle is None:
        return _no_handle(facts, call)
    if handle is None:
        return Look.HANDLE
    if handle.found is not None:
        return _by_name(handle.found, facts, call)
    return _nameless(facts, handle, call) if handle.opened else _unopened(facts, call)


def scan_below(prediction: Prediction, directory: bytes) -> Prediction:
    """The same with advice to scan this directory, which has other watches too."""
    if prediction.scan is None:
        return prediction
    lead = prediction.scan.lead
    return prediction._replace(
        advice=f"{lead}{_scan_option(directory)}",
        scan=ScanAdvice(lead, directory),
    )


def with_holder(prediction: Prediction, holder: Holder) -> Prediction:
    """The same with the task that has the deleted file or directory open.

    A restore makes a removed directory again and opens it, so its watch stays when CRIU removes it.
    """
    if holder.is_directory and prediction.verdict is WatchVerdict.NO_RESTORE:
        why = f"{_MADE_AGAIN} ({holder})"
        return prediction._replace(verdict=WatchVerdict.NO_PATH, why=why, advice="")
    return prediction._replace(why=f"{prediction.why} ({holder})")


def _reason(reason: tuple[str, str]) -> tuple[str, None, str]:
    why, advice = reason
    return why, None, advice


def _nameless(facts: Facts, handle: HandleLook, call: Call) -> Prediction | Look:
    if facts.fstype in _NEW_AT_EACH_MOUNT:
        why = _why_nameless(handle)
        advice = _APART if handle.mounted and not handle.deleted else _GIVE_UP
        advice = _CLOSE if handle.deleted and handle.mounted is None else advice
        why = f"{why}, and on {facts.fstype} CRIU wants a path"
        return _fails(why, advice)._replace(deleted=handle.deleted and handle.mounted is None)
    return _by_irmap(facts, call) if call.force_irmap else _without_path(facts, handle, call)


def _why_nameless(handle: HandleLook) -> str:
    if handle.mounted is not None:
        if handle.deleted:
            return _BOUND
        return (
            f"it is mounted at {printable(handle.mounted.path or b'')} by itself, and CRIU looks "
            "through another mount of its filesystem, in which it has no path"
        )
    if handle.deleted:
        return "it was deleted"
    if handle.symlink:
        return _LINK
    if handle.too_long:
        return "its path is longer than the kernel shows (4,095 bytes)"
    return "the kernel has dropped its name"


def _unopened(facts: Facts, call: Call) -> Prediction | Look:
    if facts.fstype != "overlay" or not call.version.walks_overlays:
        return _by_irmap(facts, call)
    if facts.overlay is None:
        return Look.OVERLAY
    if facts.overlay.hits:
        return _by_walk(facts.overlay, facts, call)
    if call.force_irmap:
        return _by_irmap(facts, call)
    return _missed_by_walk(facts, call)


def _missed_by_walk(facts: Facts, call: Call) -> Prediction | Look:
    # CRIU 4.3 then dumps the watch by its handle, and on an overlay no restore can open it.
    if facts.search is None:
        return Look.SEARCH
    why = f"CRIU {call.version} walks the overlay for it"
    if facts.search.deleted:
        why = f"{why}, but it was deleted; a restore loses the watch"
        return _no_restore(why, _CLOSE)._replace(deleted=True)
    if facts.search.mntns:
        return _no_restore(f"{why} in vain: {_lives(facts.search)}", _ELSEWHERE)
    if facts.search.path is None:
        late = f" ({facts.search.gave_up})" if facts.search.gave_up else ""
        return _no_restore(f"{why} in vain, and irmapdb does not find it either{late}", _GIVE_UP)
    why = f"{why}, and does not find it: its st_dev is not the device of the overlay"
    return _no_restore(why, _ONE_DEVICE, facts.search.path)


def _no_handle(facts: Facts, call: Call) -> Prediction:
    why = "the kernel shows no handle in its fdinfo, a line that CRIU cannot read"
    if facts.fstype == "overlay":
        # Linux before 6.6; or nfs_export=on, and a directory whose name is not cached.
        return _fails(why, f"{_pre_dump(call)}: a path that was proved may have a handle again")
    return _fails(why, _GIVE_UP)


def _by_name(found: Found, facts: Facts, call: Call) -> Prediction:
    if found.right is None:
        return _ambiguous(found, facts)
    if found.right:
        why = "the kernel knows the name that the handle leads to"
        return Prediction(WatchVerdict.PATH, CriuOutcome.PATH, why, found.path)
    why = f"the handle leads to {printable(found.path)}, another file with the same inode number"
    if found.path == b"/" and facts.handle is not None and not facts.handle.directory:
        # A file without a cached name reads as "/". So does each file that is not below the mount
        # that opened its handle; of a directory the name is always known.
        return _wrong(found, why, f"{_pre_dump(call)}: a path that was proved has a cached name")
    other = "its filesystem's other mounts" if found.path == b"/" else "the filesystem over it"
    return _wrong(found, why, f"unmount {other}, or let the task remove the watch")


def _right(verdict: WatchVerdict, why: str, found: Found, facts: Facts) -> Prediction:
    # None: it has the handle, but another file may have it too.
    if found.right is None:
        return _ambiguous(found, facts)
    if found.symlink:
        why = f"{why}; it is a symbolic link, and a restore watches its target, or fails"
        return Prediction(WatchVerdict.SYMLINK, CriuOutcome.PATH, why, found.path, _GIVE_UP)
    return Prediction(verdict, CriuOutcome.PATH, why, found.path)


def _without_path(facts: Facts, handle: HandleLook, call: Call) -> Prediction | Look:
    why = _why_nameless(handle)
    if handle.mounted is not None:
        return _only_mounted(facts, handle, handle.mounted, call)
    if handle.deleted:
        # Also if CRIU restores the file (a ghost): the watch ends when CRIU deletes it again.
        return _no_restore(f"{why}; a restore loses the watch", _CLOSE)._replace(deleted=True)
    if handle.symlink or handle.too_long:
        advice = _GIVE_UP if handle.symlink else f"shorten its path, or {_GIVE_UP}"
        return _no_path(facts, why, advice)
    why = f"{why}, and CRIU tries nothing else"
    advice = f"{_pre_dump(call)}: a path that was proved has a cached name"
    if facts.fstype in {"btrfs", "overlay"}:  # no irmap; a listing can cache the name
        return _no_path(facts, why, advice)
    if facts.search is None:
        return Look.SEARCH
    path = facts.search.path
    if call.runtime:
        return _no_path(facts, why, advice, path)
    lead = f"{advice}; or call CRIU with --force-irmap"
    if facts.search.hinted:
        return _no_path(facts, why, lead, path)
    said = _no_path(facts, why, f"{lead} and {_scan_option(path)}", path)
    return said if path is None else said._replace(scan=ScanAdvice(f"{lead} and ", path))


def _only_mounted(facts: Facts, handle: HandleLook, mounted: SearchLook, call: Call) -> Prediction:
    why = _why_nameless(handle)
    if mounted.mntns:
        where = f"{printable(mounted.path or b'')} in mount namespace {mounted.mntns}"
        return _no_path(facts, f"{why}: {where}", _ELSEWHERE)
    forced = "call CRIU with --force-irmap"
    if call.runtime:
        forced = "add the line `force-irmap` to the file that this prints"
    advice = f"{_pre_dump(call)}, and {forced}"
    if not handle.deleted:
        return _no_path(facts, why, advice, mounted.path)
    why = f"{why}: its file was removed or replaced, and no restore has the inode of the handle"
    return _no_restore(why, advice, mounted.path)


def _by_walk(overlay: OverlayLook, facts: Facts, call: Call) -> Prediction:
    wrong = [hit for hit in overlay.hits if hit.right is False]
    if wrong:
        why = f"its inode number is also that of {printable(wrong[0].path)}, on another layer"
        return _wrong(wrong[0], why, _ONE_DEVICE)
    why = (
        f"CRIU {call.version} walks {overlay.entries:,} entries of the overlay for it, with the "
        f"tasks frozen, in about {format_estimate(overlay.walk_us)}"
    )
    said = _right(WatchVerdict.WALK, why, overlay.hits[0], facts)
    less = "watch less, or have a smaller tree: this CRIU does not ask irmap-cache first"
    return said._replace(
        advice=said.advice or less, entries=overlay.entries, walk_us=overlay.walk_us
    )


def _by_irmap(facts: Facts, call: Call) -> Prediction | Look:
    if facts.cache is None:
        return Look.CACHE
    cached = facts.cache.found
    if cached is not None:
        if cached.right is not False:
            return _right(WatchVerdict.CACHE, "irmap-cache has it", cached, facts)
        why = f"irmap-cache has {printable(cached.path)}, another file with the same numbers"
        return _wrong(cached, why, _pre_dump(call))
    if facts.scan is None:
        return Look.SCAN
    wrong = [found for found in facts.scan if found.right is False]
    if wrong:
        why = f"CRIU's scan meets {printable(wrong[0].path)}, another file with the same numbers"
        return _wrong(wrong[0], why, _better_numbers(facts, call))
    if facts.scan:
        why = "CRIU's own scan finds it, with the tasks frozen"
        return _right(WatchVerdict.PATH, why, facts.scan[0], facts)
    return _not_found(facts, call)


def _not_found(facts: Facts, call: Call) -> Prediction | Look:
    why = _why_not_found(facts)
    handle = facts.handle
    opened = handle is not None and handle.opened
    mounted = handle.mounted if handle is not None else None
    if handle is not None and handle.deleted and mounted is None:
        return _fails(why, _CLOSE)._replace(deleted=True)
    if handle is not None and handle.too_long:
        return _fails(why, f"shorten its path, or {_GIVE_UP}")
    if facts.fstype == "btrfs" and opened and mounted is None:
        without = ", and leave --force-irmap away" if call.force_irmap else ""
        return _fails(
            f"{why}: irmap compares st_dev, which on btrfs is the subvolume's",
            f"{_pre_dump(call)}: a path that was proved has a cached name{without}",
        )
    search = mounted or facts.search
    if search is None and opened and facts.fstype == "overlay":  # a listing can cache the name
        return Prediction(WatchVerdict.OPTIONS, CriuOutcome.FAILS, why, advice=_pre_dump(call))
    if search is None:
        return Look.SEARCH
    if search.acceptable or (opened and not search.mntns and search.path is not None):
        advice, scan = _pre_dump(call), None
        if not call.runtime:
            lead = f"{advice}; or call CRIU with "
            advice = f"{lead}{_scan_option(search.path)}"
            scan = None if search.path is None else ScanAdvice(lead, search.path)
        return Prediction(WatchVerdict.OPTIONS, CriuOutcome.FAILS, why, search.path, advice, scan)
    return _out_of_reach(facts, call, search, why)


def _lives(search: SearchLook) -> str:
    lives = "it lives" if search.path is None else f"it is {printable(search.path)}"
    return f"{lives} in mount namespace {search.mntns}"


def _out_of_reach(facts: Facts, call: Call, search: SearchLook, why: str) -> Prediction:
    if search.deleted:
        return _fails(f"{why}: it was deleted", _CLOSE)._replace(deleted=True)
    if search.mntns:
        return _fails(f"{why}: {_lives(search)}", _ELSEWHERE)
    if search.path is not None:
        why = f"{why}: irmap compares st_dev, which is not the device of its filesystem here"
        return _fails(why, _better_numbers(facts, call), search.path)
    if search.gave_up:
        # It is not known whether it has a path that would help.
        below = "the directory that it is below"
        where = f"{below} in `[scan] paths`" if call.runtime else f"--irmap-scan-path for {below}"
        advice = f"{_pre_dump(call)}, with {where}"
        why = f"{why}, so CRIU fails with these options; the search for the file: {search.gave_up}"
        return Prediction(WatchVerdict.UNKNOWN, CriuOutcome.FAILS, why, advice=advice)
    uncover = "unmount what covers it, or " if facts.covered is not None else ""
    return _fails(f"{why}, and irmapdb does not find it either", f"{uncover}{_CLOSE}")


def _why_not_found(facts: Facts) -> str:
    if facts.handle is not None and facts.handle.opened:
        why = _why_nameless(facts.handle)
    elif facts.covered is not None:
        why = f"another mount covers its filesystem at {printable(facts.covered)}"
    elif facts.fstype is None:
        why = "no directory that CRIU sees is on its device"
    else:
        said = facts.handle.why_not if facts.handle is not None else ""
        why = f"{facts.fstype} does not open its handle" + (f" ({said})" if said else "")
    refused = facts.cache.refused if facts.cache is not None else ()
    if refused:
        return f"{why}, and irmap-cache has only {printable(refused[0])}, which CRIU refuses"
    return f"{why}, and irmap knows no path"


_ONE_DEVICE = "mount the overlay with xino=on, or its layers on one filesystem"


def _better_numbers(facts: Facts, call: Call) -> str:
    return _ONE_DEVICE if facts.fstype == "overlay" else _pre_dump(call)


def _pre_dump(call: Call) -> str:
    if call.runtime:
        return f"install the hook: `irmapdb hook --install {call.runtime}`"
    where = f" -W {_quoted(call.work_dir)}" if call.work_dir else ""
    return f"run `irmapdb pre-dump -t {call.pid}{where}` just before the dump, or install the hook"


def _scan_option(path: bytes | None) -> str:
    if path is None:
        return "the --irmap-scan-path that it is below"
    return f"--irmap-scan-path {_quoted(path)}"


def _quoted(path: bytes) -> str:
    """A path quoted for a shell; with escapes for bash, ksh and zsh if needed."""
    shown = printable(path)
    if shown.encode() == path:
        return shlex.quote(shown)
    # Byte by byte: an escape of printable() can be a character, and a shell reads it as one byte.
    plain = (chr(byte) if chr(byte) in _PLAIN else f"\\x{byte:02x}" for byte in path)
    return f"$'{''.join(plain)}'"


def _fails(why: str, advice: str, path: bytes | None = None) -> Prediction:
    return Prediction(WatchVerdict.FAILS, CriuOutcome.FAILS, why, path, advice)


def _no_path(facts: Facts, why: str, advice: str, path: bytes | None = None) -> Prediction:
    if not facts.own_mounts:
        return _no_restore(f"{why}; {_HOST_MOUNTS}", advice, path)
    if facts.fstype is not None and facts.fstype.startswith(_FORGETFUL):
        return _no_restore(f"{why}; {_FORGOTTEN}", advice, path)
    return Prediction(WatchVerdict.NO_PATH, CriuOutcome.NO_PATH, why, path, advice)


def _no_restore(why: str, advice: str, path: bytes | None = None) -> Prediction:
    return Prediction(WatchVerdict.NO_RESTORE, CriuOutcome.NO_PATH, why, path, advice)


def _ambiguous(found: Found, facts: Facts) -> Prediction:
    # CRIU does not compare more than we can.
    why = (
        f"CRIU takes {printable(found.path)}; on {facts.fstype} another file can have the same"
        " number and handle"
    )
    trust = (
        f"where you trust its server, name the mount: {_scan_option(found.path)}"
        if is_fuse(facts.fstype or "")
        else "see `ambiguous` in docs/filesystems.md"
    )
    return Prediction(WatchVerdict.UNKNOWN, CriuOutcome.PATH, why, found.path, trust)


def _wrong(found: Found, why: str, advice: str) -> Prediction:
    return Prediction(WatchVerdict.WRONG_PATH, CriuOutcome.WRONG_PATH, why, found.path, advice)
