"""CRIU's decision on one watch, from facts: pure, and in CRIU's own order.

`decide` says what CRIU will do, or what is to be looked at before that can be said. Whoever asks
looks at that and at nothing else, because a look can change what CRIU finds afterwards.

Facts from criu/fsnotify.c, criu/irmap.c and criu/proc_parse.c of CRIU 4.1.1 and 4.2, and from what
4.1.1 was seen to do; for 4.3, from what was measured with it: the walk of an overlay comes before
irmap.
"""

from __future__ import annotations

import shlex
import string
from typing import TYPE_CHECKING

from irmapdb.check.verdicts import Look, Outcome, Prediction, Verdict
from irmapdb.durations import format_estimate
from irmapdb.model import printable

if TYPE_CHECKING:
    from irmapdb.check.verdicts import Call, Facts, Found, OverlayLook, SearchLook

__all__ = ["decide"]

_NEW_AT_EACH_MOUNT = frozenset({"tmpfs", "devtmpfs"})
"""Their inode numbers; so CRIU dumps no watch without a path there."""

_GIVE_UP = "have the task remove the watch, or close what is deleted, before the dump"

_BOUND = "it has no name left but a mount point"

_PLAIN = frozenset(string.ascii_letters + string.digits + string.punctuation + " ") - {"'", "\\"}

_ELSEWHERE = (
    "CRIU looks from the root task's mount namespace alone: mount it there, too, or have the task "
    "remove the watch before the dump"
)


def decide(facts: Facts, call: Call) -> Prediction | Look:
    """What CRIU does with the watch, or the look to be taken before that can be said."""
    if facts.hopeless:
        return _fails(*facts.hopeless)
    handle = facts.handle
    if facts.identity.handle is None:
        return _no_handle(facts, call)
    if handle is None:
        return Look.HANDLE
    if handle.found is not None:
        return _by_name(handle.found, call)
    return _nameless(facts, call) if handle.opened else _unopened(facts, call)


def _nameless(facts: Facts, call: Call) -> Prediction | Look:
    if facts.fstype in _NEW_AT_EACH_MOUNT:
        deleted = facts.handle is not None and facts.handle.deleted
        what = "it was deleted" if deleted else "its name cannot be reached"
        if facts.handle is not None and facts.handle.mounted is not None:
            what = _BOUND
        return _fails(f"{what}, and on {facts.fstype} CRIU wants a path", _GIVE_UP)
    return _by_irmap(facts, call) if call.force_irmap else _without_path(facts, call)


def _unopened(facts: Facts, call: Call) -> Prediction | Look:
    if facts.fstype == "overlay" and call.version.walks_overlays:
        if facts.overlay is None:
            return Look.OVERLAY
        if facts.overlay.hits:
            return _by_walk(facts.overlay, call)
    return _by_irmap(facts, call)


def _no_handle(facts: Facts, call: Call) -> Prediction:
    why = "the kernel shows no handle in its fdinfo, a line that CRIU cannot read"
    if facts.fstype == "overlay":
        # Linux before 6.6; or nfs_export=on, and a directory whose name is not cached.
        return _fails(why, f"{_pre_dump(call)}: a path that was proved may have a handle again")
    return _fails(why, _GIVE_UP)


def _by_name(found: Found, call: Call) -> Prediction:
    if found.right:
        why = "the kernel knows the name that the handle leads to"
        return Prediction(Verdict.PATH, Outcome.PATH, why, found.path)
    why = f"the handle leads to {printable(found.path)}, another file with the same inode number"
    if found.path == b"/":
        # What has no cached name reads as "/".
        return _wrong(found, why, f"{_pre_dump(call)}: a path that was proved has a cached name")
    return _wrong(found, why, "unmount what hides the watched file, or have the watch removed")


def _without_path(facts: Facts, call: Call) -> Prediction | Look:
    if facts.handle is not None and facts.handle.deleted:
        # Also where CRIU brings the file back (a ghost): the watch goes when it is deleted again.
        return _no_path("it was deleted; a restore loses the watch", _GIVE_UP)
    if facts.handle is not None and facts.handle.mounted is not None:
        return _only_mounted(facts.handle.mounted, call)
    why = "the kernel has dropped its name, and CRIU does not ask further"
    advice = f"{_pre_dump(call)}: a path that was proved has a cached name"
    if facts.fstype == "btrfs":
        return _no_path(why, advice)
    if facts.search is None:
        return Look.SEARCH
    path = facts.search.path
    scan = "" if facts.search.hinted else f" and {_scan_option(path)}"
    return _no_path(why, f"{advice}; or call CRIU with --force-irmap{scan}", path)


def _only_mounted(mounted: SearchLook, call: Call) -> Prediction:
    why = f"{_BOUND}, and no handle leads CRIU there"
    if mounted.mntns:
        where = f"{printable(mounted.path or b'')} in mount namespace {mounted.mntns}"
        return _no_path(f"{why}: {where}", _ELSEWHERE)
    advice = f"{_pre_dump(call)}, and call CRIU with --force-irmap"
    return _no_path(why, advice, mounted.path)


def _by_walk(overlay: OverlayLook, call: Call) -> Prediction:
    wrong = [hit for hit in overlay.hits if not hit.right]
    if wrong:
        why = f"its inode number is also that of {printable(wrong[0].path)}, on another layer"
        return _wrong(wrong[0], why, _ONE_DEVICE)
    why = (
        f"CRIU {call.version} walks {overlay.entries:,} entries of the overlay for it, with the "
        f"tasks frozen, in about {format_estimate(overlay.walk_us)}"
    )
    return Prediction(
        Verdict.WALK,
        Outcome.PATH,
        why,
        overlay.hits[0].path,
        "watch less, or have a smaller tree: this CRIU does not ask irmap-cache first",
        overlay.entries,
        overlay.walk_us,
    )


def _by_irmap(facts: Facts, call: Call) -> Prediction | Look:
    if facts.cache is None:
        return Look.CACHE
    cached = facts.cache.found
    if cached is not None:
        if cached.right:
            return Prediction(Verdict.CACHE, Outcome.PATH, "irmap-cache has it", cached.path)
        why = f"irmap-cache has {printable(cached.path)}, another file with the same numbers"
        return _wrong(cached, why, _pre_dump(call))
    if facts.scan is None:
        return Look.SCAN
    wrong = [found for found in facts.scan if not found.right]
    if wrong:
        why = f"CRIU's scan meets {printable(wrong[0].path)}, another file with the same numbers"
        return _wrong(wrong[0], why, _better_numbers(facts, call))
    if facts.scan:
        why = "CRIU's own scan finds it, with the tasks frozen"
        return Prediction(Verdict.PATH, Outcome.PATH, why, facts.scan[0].path)
    return _not_found(facts, call)


def _not_found(facts: Facts, call: Call) -> Prediction | Look:
    why = _why_not_found(facts)
    opened = facts.handle is not None and facts.handle.opened
    if facts.handle is not None and facts.handle.deleted:
        return _fails(f"{why}: it was deleted", _GIVE_UP)
    if facts.fstype == "btrfs":
        without = ", and leave --force-irmap away" if call.force_irmap else ""
        return _fails(
            f"{why}: irmap compares st_dev, which on btrfs is the subvolume's",
            f"{_pre_dump(call)}: a path that was proved has a cached name{without}",
        )
    search = facts.handle.mounted if facts.handle is not None else None
    search = search or facts.search
    if search is None:
        return Look.SEARCH
    if search.acceptable or (opened and not search.mntns):
        advice = f"{_pre_dump(call)}; or call CRIU with {_scan_option(search.path)}"
        return Prediction(Verdict.OPTIONS, Outcome.FAILS, why, search.path, advice)
    return _out_of_reach(facts, call, search, why)


def _out_of_reach(facts: Facts, call: Call, search: SearchLook, why: str) -> Prediction:
    if search.deleted:
        return _fails(f"{why}: it was deleted", _GIVE_UP)
    if search.mntns:
        lives = "it lives" if search.path is None else f"it is {printable(search.path)}"
        return _fails(f"{why}: {lives} in mount namespace {search.mntns}", _ELSEWHERE)
    if search.path is not None:
        why = f"{why}: irmap compares st_dev, which is not the device of its filesystem here"
        return _fails(why, _better_numbers(facts, call), search.path)
    if search.gave_up:
        advice = f"{_pre_dump(call)}, with the --irmap-scan-path that it is below"
        return _fails(f"{why}; irmapdb has not found it either: {search.gave_up}", advice)
    return _fails(f"{why}, and irmapdb does not find it either", _GIVE_UP)


def _why_not_found(facts: Facts) -> str:
    if facts.handle is not None and facts.handle.mounted is not None:
        why = _BOUND
    elif facts.handle is not None and facts.handle.opened:
        why = "the kernel has dropped its name"
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
    where = f" -W {_quoted(call.work_dir)}"
    return f"run `irmapdb pre-dump -t {call.pid}{where}` just before, or install the hook"


def _scan_option(path: bytes | None) -> str:
    if path is None:
        return "the --irmap-scan-path that it is below"
    return f"--irmap-scan-path {_quoted(path)}"


def _quoted(path: bytes) -> str:
    """A path as a shell takes it; what has escapes, as bash, ksh and zsh do."""
    shown = printable(path)
    if shown.encode() == path:
        return shlex.quote(shown)
    # Byte by byte: what printable() escapes as a character, a shell would take for one byte.
    plain = (chr(byte) if chr(byte) in _PLAIN else f"\\x{byte:02x}" for byte in path)
    return f"$'{''.join(plain)}'"


def _fails(why: str, advice: str, path: bytes | None = None) -> Prediction:
    return Prediction(Verdict.FAILS, Outcome.FAILS, why, path, advice)


def _no_path(why: str, advice: str, path: bytes | None = None) -> Prediction:
    return Prediction(Verdict.NO_PATH, Outcome.NO_PATH, why, path, advice)


def _wrong(found: Found, why: str, advice: str) -> Prediction:
    return Prediction(Verdict.WRONG_PATH, Outcome.WRONG_PATH, why, found.path, advice)
