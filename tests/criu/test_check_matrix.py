"""check beside every CRIU that it knows: the dump has the predicted outcome.

Nothing is dropped from the caches between the two: a check that made a name known to the kernel
which CRIU would not have found would be caught here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.support.area import PLACES
from tests.support.filesystems import drop_caches
from tests.support.notify import IN_ATTRIB, IN_OPEN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from irmapdb.criu.check.verdicts import CriuOutcome, WatchVerdict
    from tests.support.area import MountArea, Place
    from tests.support.check_outcome import Bench
    from tests.support.criu import CriuRun
    from tests.support.watcher import Watched, Watcher

_PAGE = Path(__file__).parents[2] / "docs" / "criu.md"
_IN_DONT_FOLLOW = 0x02000000
_MASK = IN_OPEN | IN_ATTRIB


class State(NamedTuple):
    """The state of the caches, and the options of CRIU."""

    cold: bool
    forced: bool
    cached: bool
    """Whether irmap-cache is there, as pre-dump wrote it."""


STATES = tuple(
    State(cold, forced, cached)
    for cold in (False, True)
    for forced in (False, True)
    for cached in (False, True)
)


def _cases(place: Place, target: Watcher) -> Iterator[tuple[Path, Watched]]:
    """One watch after the other, and the path that it had."""
    directory = place.directory / "dir"
    for path in (directory / "file", directory):
        yield path, target.add_inotify(path, _MASK)
    if not place.writable:
        return
    written, deleted, link = (directory / name for name in ("written", "deleted", "link"))
    written.write_text("in the upper layer, where there are layers")
    yield written, target.add_inotify(written, _MASK)
    if place.kind != "fuse":  # bindfs gives the link another inode at each look
        link.symlink_to("file")
        yield link, target.add_inotify(link, _MASK | _IN_DONT_FOLLOW)
    deleted.touch()
    watched = target.add_inotify(deleted, _MASK)
    held = target.open(deleted)
    deleted.unlink()
    yield deleted, watched
    target.close_fd(held)


class Cell(NamedTuple):
    """The prediction and the outcome for one watch in one state."""

    name: str
    state: State
    verdict: WatchVerdict
    predicted: CriuOutcome
    did: CriuOutcome
    run: CriuRun


def _cells(path: Path, watched: Watched, bench: Bench) -> list[Cell]:
    found: list[Cell] = []
    cache = bench.pre_dump()
    for state in STATES:

        def warm() -> None:
            if os.path.lexists(path):
                path.lstat()

        def cool() -> None:
            drop_caches(path.parent)

        said = bench.compare(
            watched,
            prepare=cool if state.cold else warm,
            cache=cache if state.cached else None,
            forced=state.forced,
        )
        found.append(Cell(path.name, state, said.verdict, said.predicted, said.did, said.run))
    return found


_PLAIN = {"ext4", "xfs", "xfs-parents", "bind"}
_ONE_DEVICE = {"overlay-lower", "overlay-upper", "overlay-xino"}
_FILES = {"file", "written"}


def _documented_as(kind: str, name: str) -> str:
    """The first column of the row in docs/criu.md; empty where there is none."""
    rows = {
        "file on ext4, xfs, erofs, a bind mount of them": (_PLAIN | {"erofs"}, _FILES),
        "file on btrfs": ({"btrfs", "btrfs-subvolume", "btrfs-subvol-mount"}, _FILES),
        "file on tmpfs; directory on any of these": (
            _PLAIN | {"erofs", "btrfs", "btrfs-subvolume", "btrfs-subvol-mount", "fuse", "tmpfs"},
            {"dir"},
        ),
        "symbolic link on ext4, xfs": (_PLAIN, {"link"}),
        "symbolic link on btrfs": ({"btrfs", "btrfs-subvolume", "btrfs-subvol-mount"}, {"link"}),
        "symbolic link on tmpfs": ({"tmpfs"}, {"link"}),
        "overlayfs, layers on one filesystem or `xino=on`": (_ONE_DEVICE, {"dir", *_FILES, "link"}),
        "overlayfs, layers on two filesystems: file": ({"overlay-two-filesystems"}, _FILES),
        "overlayfs, layers on two filesystems: directory": ({"overlay-two-filesystems"}, {"dir"}),
        "overlayfs with `nfs_export=on`: file": ({"overlay-nfs-export"}, _FILES),
        "overlayfs with `nfs_export=on`: directory": ({"overlay-nfs-export"}, {"dir"}),
        "deleted file on ext4, xfs, btrfs": (_PLAIN | {"btrfs", "btrfs-subvolume"}, {"deleted"}),
        "deleted file on tmpfs": ({"tmpfs"}, {"deleted"}),
        "deleted file on overlayfs": (_ONE_DEVICE | {"overlay-two-filesystems"}, {"deleted"}),
        "sysfs": ({"sysfs"}, {"uevent_seqnum"}),
        "/proc/sys": ({"proc"}, {"hostname"}),
    }
    return next(
        (row for row, (kinds, names) in rows.items() if kind in kinds and name in names), ""
    )


_COLUMNS = (
    State(cold=False, forced=False, cached=False),
    State(cold=False, forced=False, cached=True),
    State(cold=True, forced=False, cached=False),
    State(cold=True, forced=True, cached=False),
    State(cold=True, forced=True, cached=True),
)


def _documented(row: str, version: str) -> dict[State, str]:
    lines = [line.strip("| ") for line in _PAGE.read_text().splitlines()]
    (line,) = (line for line in lines if line.startswith(f"{row} |"))
    cells = [cell.strip().partition(" (")[0] for cell in line.split("|")[1:]]
    later = version == "4.3"
    said = [cell.split(" / ")[-1 if later else 0].strip("*") for cell in cells]
    return dict(zip(_COLUMNS, said, strict=True))


def _wrong(kind: str, cells: list[Cell], version: str) -> list[object]:
    """The cells that check or the documentation has wrong."""
    wrong: list[object] = [cell for cell in cells if cell.predicted is not cell.did]
    for cell in cells:
        row = _documented_as(kind, cell.name)
        said = _documented(row, version).get(cell.state) if row else None
        if said is not None and said != cell.did.name.lower().replace("_", " "):
            wrong.append(("docs/criu.md", row, cell))
    return wrong


@pytest.mark.slow
@pytest.mark.parametrize("kind", PLACES)
def test_every_cell(kind: str, each_bench: Bench, area: MountArea) -> None:
    place = area.place(kind)
    cells = []
    for path, watched in _cases(place, each_bench.target):
        cells += _cells(path, watched, each_bench)
        each_bench.target.remove(watched)
    assert _wrong(kind, cells, each_bench.criu.version) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "path"),
    [("sysfs", "/sys/kernel/uevent_seqnum"), ("proc", "/proc/sys/kernel/hostname")],
)
def test_every_cell_of_filesystems_that_the_kernel_fills(
    kind: str, path: str, each_bench: Bench
) -> None:
    watched = each_bench.target.add_inotify(path, _MASK)
    cells = _cells(Path(path), watched, each_bench)
    assert _wrong(kind, cells, each_bench.criu.version) == []
