"""Filesystem by filesystem: the source of each path, its time, and the result of CRIU alone.

Each cell is asserted. `make filesystems` runs this with IRMAPDB_WRITE_TABLE=docs/filesystems.md,
and the answers become the page.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from irmapdb.checkpoint import steps
from irmapdb.checkpoint.steps import StepOptions
from irmapdb.config import Config
from tests.support.area import PLACES, MountArea, Place
from tests.support.criu import Criu
from tests.support.filesystems import drop_caches
from tests.support.kernel_places import KERNEL_PLACES, kernel_place
from tests.support.notify import IN_OPEN
from tests.support.watcher import Watched, Watcher

CASES = ("file", "directory", "hard link", "renamed", "deleted", "cold")
_CHANGING = {"hard link", "renamed", "deleted"}

# The server of a FUSE filesystem may give each name of a file an inode of its own, as bindfs does;
# an overlay without index does so for a file with several names in a lower layer: the watch goes
# with the name.
_NO_LINKS = {
    (kind, "hard link")
    for kind in ("fuse", "overlay-lower", "overlay-two-filesystems", "overlay-xino")
}


# A name of procfs that the kernel has forgotten gets a new inode at the next look
# (proc_pid_make_inode() of fs/proc/base.c): the watched one has no name any more. It does not
# forget one that a process is just using.
# If a number was given again, it is not known which terminal has it.
_NEW_INODES = {("procfs", "cold"), ("devpts", "file"), ("devpts", "cold")}


class Cell(NamedTuple):
    """The result for one watch."""

    answer: str
    criu: str


_cells: dict[tuple[str, str], Cell] = {}


def _prepare(case: str, place: Place, target: Watcher) -> tuple[Path, set[Path]]:
    """Make the case; returns the file to watch, and the names that it then has."""
    if case == "directory":
        return place.directory / "dir", {place.directory / "dir"}
    file = place.linked if case == "hard link" else place.directory / "dir" / "file"
    if case == "deleted":
        target.open(file)  # without that the kernel takes the watch away
    return file, {file, *([place.directory / "dir" / "hard"] if file == place.linked else [])}


def _alter(case: str, place: Place, file: Path, names: set[Path]) -> set[Path]:
    if case == "hard link":
        file.unlink()
        return names - {file}
    if case == "renamed":
        moved = place.directory / "moved"
        file.rename(moved)
        return {moved, *names} - {file}
    if case == "deleted":
        for name in sorted(names, reverse=True):  # the one that is open last
            name.unlink()
        return set()
    if case == "cold":
        drop_caches()
    return names


def _ask_criu(criu: Criu, target: Watcher, watched: Watched, images: Path) -> str:
    done = criu.dump(target.pid, images, force_irmap=True)
    if not done.ok:
        return "fails"
    (dumped,) = criu.dumped_watches(images)
    if dumped.path is None:
        return "no path"
    return "path" if _leads_to(target, watched, os.fsencode(dumped.path)) else "**wrong path**"


def _leads_to(target: Watcher, watched: Watched, path: bytes) -> bool:
    """Whether the watch reports an open of the path: this is the truth."""

    def look() -> None:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY))

    return os.path.lexists(path) and target.hears(watched, look)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", PLACES)
def test_every_kind_of_watch(
    kind: str, case: str, area: MountArea, criu: Criu, target: Watcher, tmp_path: Path
) -> None:
    place = area.place(kind)
    if (case in _CHANGING and not place.writable) or (kind, case) in _NO_LINKS:
        _cells[kind, case] = Cell("-", "-")
        return
    path, names = _prepare(case, place, target)
    watched = target.add_inotify(path, IN_OPEN)
    names = _alter(case, place, path, names)
    criu_says = _ask_criu(criu, target, watched, tmp_path / "images")
    if case == "cold":
        drop_caches()
    answer = _ask_irmapdb(
        target,
        watched,
        tmp_path / "work",
        names=names,
        scan_paths=(os.fsencode(place.mountpoint),) if kind == "fuse" else (),
    )
    assert (answer == "deleted") == (case == "deleted")
    _cells[kind, case] = Cell(answer, criu_says)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KERNEL_PLACES)
def test_every_kind_of_watch_on_filesystems_that_the_kernel_fills(
    kind: str, case: str, area: MountArea, criu: Criu, target: Watcher, tmp_path: Path
) -> None:
    with kernel_place(kind, area, target.pid) as place:
        if case in {"hard link", "renamed"} or (case == "deleted" and place.remove is None):
            _cells[kind, case] = Cell("-", "-")
            return
        path = place.directory if case == "directory" else place.file
        if case == "deleted":
            target.open(path)  # without that the kernel takes the watch away
        watched = target.add_inotify(path, IN_OPEN)
        names = {path}
        if case == "deleted" and place.remove is not None:
            place.remove()
            names = set()
        if case == "cold":
            drop_caches(place.directory)
        criu_says = _ask_criu(criu, target, watched, tmp_path / "images")
        if case == "cold":
            drop_caches(place.directory)
        lost = (kind, case) in _NEW_INODES
        answer = _ask_irmapdb(target, watched, tmp_path / "work", names=names, may_be_lost=lost)
        _cells[kind, case] = Cell(answer, criu_says)


def _ask_irmapdb(
    target: Watcher,
    watched: Watched,
    work: Path,
    *,
    names: set[Path],
    scan_paths: tuple[bytes, ...] = (),
    may_be_lost: bool = False,
) -> str:
    work.mkdir()
    options = StepOptions(target.pid, work, scan_paths=scan_paths, config=Config(hints=()))
    report = steps.pre_dump(options)
    (row,) = report.watches
    if not names or (may_be_lost and row.path is None):
        assert row.path is None
        return "deleted" if "deleted" in (row.why or "") else "no path"
    assert row.path is not None, row.why
    assert _leads_to(target, watched, row.path)
    (source,) = report.stats.sources
    return f"{source}, {report.stats.resolve_us:,} µs"


@pytest.fixture(scope="module", autouse=True)
def _page() -> Iterator[None]:
    yield
    page = os.environ.get("IRMAPDB_WRITE_TABLE")
    if page:
        Path(page).write_text(_render(lambda kind, case: _cells[kind, case]))


def _render(cell: Callable[[str, str], Cell]) -> str:
    lines = [
        "# Filesystems",
        "",
        "`make filesystems` writes this page from a test run. The run mounts each filesystem and",
        "watches a file on it. It changes the file as the column says, and runs CRIU, and",
        "`irmapdb pre-dump` with an empty database. It opens each path, and checks that the",
        "watch reports an event there. Each time is for one watch on one machine.",
        "",
        "| column | the watched file |",
        "|---|---|",
        "| file, directory | is unchanged |",
        "| hard link | has lost the watched name, and has another name |",
        "| renamed | is in another directory |",
        "| deleted | has no name, and a task has it open |",
        "| cold | is unchanged, and the kernel has dropped every dentry |",
        "",
        "*CRIU* is `criu dump --force-irmap` of CRIU 4.1.1 without a cache: its own irmap. CRIU",
        "saves deleted files in another way (ghost files). A - marks a case that cannot occur:",
        "the filesystem is read-only, or each name of a file is an inode of its own, or the",
        "kernel makes the files.",
        "",
        "| filesystem | | " + " | ".join(CASES) + " |",
        "|---|---|" + "---|" * len(CASES),
    ]
    for kind in (*PLACES, *KERNEL_PLACES):
        cells = [cell(kind, case) for case in CASES]
        lines.append(f"| {kind} | irmapdb | " + " | ".join(one.answer for one in cells) + " |")
        lines.append("| | *CRIU* | " + " | ".join(one.criu for one in cells) + " |")
    lines += [
        "",
        "| in the table | irmapdb found the path by |",
        "|---|---|",
        "| `handle` | the file handle: it opens, and the kernel has the name cached |",
        "| `overlay` | the handle within the overlay's handle: it opens in the layer |",
        (
            "| `btrfs`, `xfs` | the filesystem, which knows the names of an inode (xfs: with "
            "parent pointers) |"
        ),
        "| `open-files` | a task that has the file open, or mapped, under that name |",
        (
            "| `scan` | one walk for all remaining watches. On FUSE with `--irmap-scan-path`: "
            "irmapdb walks a FUSE or network filesystem only if you name it |"
        ),
        "| `deleted` | the file has no name, and irmapdb reports that |",
        (
            "| `no path` | on procfs: the kernel has dropped the name, and gives it a new inode. "
            "In a removed cgroup: the kernel does not show that the file is deleted |"
        ),
        "",
        "## Where a watch is `ambiguous`",
        "",
        "irmapdb proves a path only if no other inode can have the same numbers and handle. If",
        "this is not certain, the watch is `ambiguous` and gets no path:",
        "",
        "| filesystem | for |",
        "|---|---|",
        "| overlay without `index=on` | a file of a lower layer that has several names |",
        (
            "| overlay with several lower layers | a file whose handle opens on two "
            "filesystems of the machine: cloned layers, or squashfs layers with equal inode "
            "numbers. Not directories, and no files with `xino=on` |"
        ),
        "| overlay on an overlay | all files, unless all layers are on one filesystem |",
        (
            "| FUSE | all files, because a server can give one number to two of them. "
            "If you give `--irmap-scan-path`, irmapdb trusts the server |"
        ),
        "| virtiofs, CIFS, 9p | all files, for the same reason |",
        (
            "| procfs | a file that belongs to no task (`/proc/meminfo`): if the kernel "
            "drops its name, it gets a new inode with the old number, and the watch does not "
            "report its events |"
        ),
        "| devpts | a terminal: the kernel uses its number again |",
        (
            "| tracefs; the root of debugfs, securityfs, fusectl and binfmt_misc; nsfs, pidfs "
            "| all files |"
        ),
        "| btrfs | the directory in a snapshot at the place of a subvolume |",
        "| any type that irmapdb does not know | all files |",
        "",
    ]
    return "\n".join(lines)
