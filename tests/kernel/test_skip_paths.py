"""`[scan] skip-paths`: no scan enters these directories; the reason for a missing path names them.

The test watches the directories with inotify, so the kernel reports each open.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from irmapdb.config import Config
from irmapdb.resolve.scan import Scan
from irmapdb.resolve.skip_paths import SkipPaths
from tests.support.cli import irmapdb
from tests.support.filesystems import drop_caches
from tests.support.notify import IN_OPEN
from tests.support.programs import run
from tests.support.resolver_call import ask, path_by, why_not

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from irmapdb.kernel.root import Root
    from irmapdb.model import Identity
    from tests.support.area import MountArea
    from tests.support.watcher import Watcher

    Watched = Callable[[Path], Identity]


def _config(*skipped: Path, hints: tuple[Path, ...] = ()) -> Config:
    return Config(hints=tuple(map(os.fsencode, hints)), skip_paths=tuple(map(os.fsencode, skipped)))


@pytest.fixture
def opened(watcher: Watcher) -> Callable[..., set[Path]]:
    """The directories among these that were opened since the last call."""
    wds: dict[int, Path] = {}

    def look(*directories: Path) -> set[Path]:
        found = {wds.get(event.wd) for event in watcher.events()} - {None}
        for directory in directories:
            wds[watcher.add_inotify(directory, IN_OPEN).wd] = directory
        return found

    return look


def test_no_walk_enters_a_skipped_directory(
    area: MountArea, root: Root, watched: Watched, opened: Callable[..., set[Path]]
) -> None:
    top = area.ext4().mountpoint
    for name in ("skip/deep", "skipped-not", "rest"):
        (top / name).mkdir(parents=True)
    for path in ("skip/deep/file", "skipped-not/file", "skip/linked"):
        (top / path).touch()
    (top / "rest" / "linked").hardlink_to(top / "skip" / "linked")
    lost, found, linked = map(
        watched, (top / "skip/deep/file", top / "skipped-not/file", top / "skip/linked")
    )
    itself = watched(top / "skip")
    opened(top / "skip", top / "skip" / "deep", top / "rest")

    scan = Scan(root, _config(top / "skip"))
    outcome = ask(root, scan, lost, found, linked, itself)

    assert opened() == {top / "rest"}
    assert {answer.path for answer in outcome.resolved.values()} == {
        os.fsencode(top / "skipped-not/file"),
        os.fsencode(top / "rest/linked"),
        os.fsencode(top / "skip"),
    }, "the directory itself has a name that is outside of it"
    assert outcome.unresolved[lost].why == (
        f"scan: not found on {top}; {top}/skip is left out (skip-paths)"
    )


@pytest.mark.parametrize("named", ["skip", "skip/deep", "skip/deep/file"])
def test_a_named_path_has_precedence(
    area: MountArea, root: Root, watched: Watched, named: str
) -> None:
    top = area.tmpfs()
    (top / "skip" / "deep").mkdir(parents=True)
    (top / "skip" / "deep" / "file").touch()
    shown = watched(top / "skip" / "deep" / "file")
    for paths in ([top / named], [top, top / named], [top / named, top]):
        scan = Scan(root, _config(top / "skip"), paths=map(os.fsencode, paths))
        assert path_by(root, scan, shown) == os.fsencode(top / "skip" / "deep" / "file")
    scan = Scan(root, _config(top / "skip"), paths=[os.fsencode(top)])
    assert "is left out" in why_not(root, scan, shown).why, "its parent alone is not enough"


def test_hints_and_mount_points_in_it_are_left_out(
    area: MountArea, root: Root, watched: Watched, opened: Callable[..., set[Path]]
) -> None:
    base = area.tmpfs("base")
    (base / "skip" / "hint").mkdir(parents=True)
    (base / "skip" / "hint" / "file").touch()
    mounted = area.mount("tmpfs", "base/skip/mounted", "tmpfs")
    (mounted / "file").touch()
    ours, theirs = watched(base / "skip/hint/file"), watched(base / "skip/mounted/file")
    opened(base / "skip/hint", base / "skip/mounted")
    hints = (base / "skip" / "hint", base / "skip" / "mounted")
    scan = Scan(root, _config(base / "skip", hints=hints))
    outcome = ask(root, scan, ours, theirs)
    assert outcome.resolved == {}
    assert opened() == set()
    assert outcome.unresolved[theirs].why == f"scan: {base}/skip is left out (skip-paths)"
    named = [os.fsencode(base / "skip" / "mounted")]
    found = ask(root, Scan(root, _config(base / "skip"), paths=named), ours, theirs)
    assert found.resolved[theirs].path == os.fsencode(base / "skip/mounted/file")
    assert ours in found.unresolved


@pytest.mark.parametrize("spelling", ["{}", "{}/", "/{}", "{}/.", "{}//x/.."])
def test_a_skipped_path_may_be_written_in_many_ways(
    area: MountArea, root: Root, watched: Watched, spelling: str
) -> None:
    top = area.tmpfs()
    (top / "skip").mkdir()
    (top / "skip" / "file").touch()
    shown = watched(top / "skip" / "file")
    config = Config(hints=(), skip_paths=(os.fsencode(spelling.format(top / "skip")),))
    assert "is left out" in why_not(root, Scan(root, config), shown).why


def test_a_link_to_a_skipped_directory_is_not_followed(
    area: MountArea, root: Root, watched: Watched
) -> None:
    # A tenant cannot make us leave out another directory: no link is followed.
    top = area.tmpfs()
    (top / "real").mkdir()
    (top / "real" / "file").touch()
    (top / "skip").symlink_to("real")
    shown = watched(top / "real" / "file")
    assert path_by(root, Scan(root, _config(top / "skip")), shown)


def test_the_upper_layer_of_an_overlay_is_no_exception(
    area: MountArea, watcher: Watcher, tmp_path: Path
) -> None:
    # A file that was renamed after it was copied up is found by a walk of the upper layer.
    lower, base = tmp_path / "lower", tmp_path / "base"
    (lower / "skip").mkdir(parents=True)
    base.mkdir()
    (lower / "skip" / "before").write_text("x")
    merged = area.overlay("merged", lower=lower, upper_base=base).mountpoint
    watcher.add_inotify(merged / "skip" / "before")
    (merged / "skip" / "before").write_text("copied up")
    (merged / "skip" / "before").rename(merged / "skip" / "after")
    config = tmp_path / "irmapdb.toml"
    pid = str(watcher.pid)

    def said(text: str) -> str:
        run("sync")
        drop_caches()
        config.write_text(f"[scan]\nhints = []\n{text}")
        return irmapdb("ps", "-t", pid, "--search", "--config", config).out

    assert f"{merged}/skip/after" in said("")
    blind = said(f'skip-paths = ["{merged}/skip"]\n')
    assert f"{merged}/skip/after" not in blind
    assert f"{merged}/skip is left out (skip-paths)" in blind


def test_check_searches_no_skipped_directory_for_its_advice(
    area: MountArea, watcher: Watcher, opened: Callable[..., set[Path]], tmp_path: Path
) -> None:
    top = area.ext4().mountpoint
    (top / "skip").mkdir()
    (top / "skip" / "file").touch()
    watcher.add_inotify(top / "skip" / "file")
    config = tmp_path / "irmapdb.toml"
    config.write_text(f'[scan]\nhints = []\nskip-paths = ["{top}/skip"]\n')
    with_it = ("check", "-t", watcher.pid, "-D", tmp_path, "--criu-version", "4.2", "--all-rows")

    def advised(*more: str | Path) -> bool:
        run("sync")
        drop_caches()
        return f"--irmap-scan-path {top}/skip" in irmapdb(*with_it, *more).out

    assert advised()
    opened(top / "skip")
    assert not advised("--config", config)
    assert opened() == set()


def test_several_are_named_by_the_first(area: MountArea, root: Root, watched: Watched) -> None:
    top = area.tmpfs()
    for name in ("a", "b"):
        (top / name).mkdir()
    (top / "b" / "file").touch()
    shown = watched(top / "b" / "file")
    scan = Scan(root, _config(top / "a", top / "b", top / "b"))
    assert why_not(root, scan, shown).why == (
        f"scan: not found on {top}; 2 directories are left out (skip-paths), the first is {top}/a"
    )


def test_the_rule_by_itself() -> None:
    skips = SkipPaths([b"/srv/cache", b"/srv/cache/", b"/data"])
    assert skips.has(b"/srv/cache")
    assert skips.has(b"/srv/cache/x")
    assert not skips.has(b"/srv/cached")
    assert not skips.has(b"/srv")
    assert skips.below(b"/srv") == {b"cache"}
    assert skips.below(b"/") == {b"srv/cache", b"data"}
    assert skips.below(b"/srv/cache") == frozenset()
    assert not skips.for_named(b"/srv/cache/x").has(b"/srv/cache")
    assert skips.for_named(b"/srv/cache/x").has(b"/data")


def test_ps_takes_paths_to_skip_on_its_command_line(
    area: MountArea, watcher: Watcher, opened: Callable[..., set[Path]], tmp_path: Path
) -> None:
    top = area.ext4().mountpoint
    (top / "skip").mkdir()
    (top / "skip" / "file").touch()
    watcher.add_inotify(top / "skip" / "file")
    config = tmp_path / "irmapdb.toml"
    config.write_text(f'[scan]\nhints = []\nskip-paths = ["{top}/other"]\n')
    words = ("ps", "-t", watcher.pid, "--search", "--config", config)
    run("sync")
    drop_caches()
    opened(top / "skip")
    blind = irmapdb(*words, "--skip-path", top / "skip")
    assert opened() == set()
    assert f"2 directories are left out (skip-paths), the first is {top}/other" in blind.out
    assert f"{top}/skip/file" in irmapdb(*words).out
