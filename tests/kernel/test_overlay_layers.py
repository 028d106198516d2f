"""Overlays by their own handles: every path without a scan, warm and cold."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from irmapdb.checkpoint import steps
from irmapdb.kernel.child_call import call_in_child
from irmapdb.kernel.proof import disproof
from irmapdb.kernel.root import Root, open_root
from irmapdb.model import Identity, Source
from irmapdb.node import ps
from irmapdb.resolve.engine import resolve
from irmapdb.resolve.overlay import OverlayLayers
from tests.support.area import MountArea
from tests.support.filesystems import drop_caches, unmount
from tests.support.kernel_paths import as_nobody, watched_identity
from tests.support.notify import FAN_ONDIR, IN_OPEN
from tests.support.programs import ProgramError, run
from tests.support.resolver_call import ask, path_by, why_not
from tests.support.stepping import NO_HINTS, new_work_dir, options_for
from tests.support.watcher import Watched, Watcher

# irmapdb knows the filesystem of a layer if it can see every filesystem of the machine.
pytestmark = pytest.mark.alone

_FAN_CLASS_CONTENT = 0x04
_FAN_OPEN_PERM = 0x10000


class _Made(NamedTuple):
    """An overlay, its layers' directories, and the task that watches."""

    top: Path
    lower: Path
    upper: Path
    watcher: Watcher
    root: Root

    def watch(self, name: str) -> Watched:
        # On an instance of its own: a directory reports opens of the files in it.
        return self.watcher.add_inotify(self.top / name, IN_OPEN, fd=self.watcher.inotify())

    def identity(self, watched: Watched) -> Identity:
        return watched_identity(self.watcher, watched)

    def is_found(self, watched: Watched, *names: str) -> None:
        """Warm and cold, at one of the names, and the watch reports an event there."""
        for _ in range(2):
            path = path_by(self.root, OverlayLayers(self.root), self.identity(watched))
            assert path in {os.fsencode(self.top / name) for name in names}
            assert self.watcher.hears(watched, lambda path=path: _open(path))
            drop_caches()


def _open(path: bytes) -> None:
    os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))


def _fill(lower: Path) -> None:
    (lower / "a" / "b" / "c").mkdir(parents=True)
    for name in ("file", "a/file", "a/b/file", "a/b/c/file", "a/b/c/other"):
        (lower / name).write_bytes(b"content")


Make = Callable[..., _Made]


@pytest.fixture
def make(area: MountArea, watcher: Watcher, root: Root) -> Make:
    """An overlay of a filled lower layer on a filesystem of some type."""

    def made(kind: str = "ext4", options: str = "", *, upper_on: str = "") -> _Made:
        base = getattr(area, kind)("layers").mountpoint
        upper_base = getattr(area, upper_on)("upper-layers").mountpoint if upper_on else base
        lower = base / "lower"
        _fill(lower)
        one = area.overlay(lower=lower, upper_base=upper_base, options=options)
        root.renew()
        return _Made(one.mountpoint, lower, one.upper, watcher, root)

    return made


@pytest.mark.parametrize("kind", ["ext4", "xfs", "xfs_with_parent_pointers", "btrfs"])
@pytest.mark.parametrize("upper_on", ["", "ext4"])
def test_a_file_in_the_lower_layer(make: Make, kind: str, upper_on: str) -> None:
    made = make(kind, upper_on=upper_on)
    watched = {name: made.watch(name) for name in ("file", "a", "a/b/c", "a/b/c/file", "")}
    for name, one in watched.items():
        made.is_found(one, name)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_a_file_in_the_upper_layer(make: Make, kind: str) -> None:
    made = make(kind)
    (made.top / "new" / "deep").mkdir(parents=True)
    (made.top / "new" / "deep" / "file").write_bytes(b"content")
    (made.top / "a" / "b" / "new").write_bytes(b"content")
    for name in ("new", "new/deep/file", "a/b/new"):
        watched = made.watch(name)
        made.is_found(watched, name)
    (made.top / "new").rename(made.top / "renamed")
    watched = made.watcher.watched[1]
    made.is_found(watched, "renamed/deep/file")


@pytest.mark.parametrize("options", ["", "index=on", "metacopy=on,redirect_dir=on", "xino=on"])
@pytest.mark.parametrize("before", [True, False])
def test_a_file_that_was_copied_up(
    make: Make,
    options: str,
    before: bool,  # noqa: FBT001
) -> None:
    made = make(options=options)
    if before:
        (made.top / "a" / "b" / "file").chmod(0o600)
    watched = made.watch("a/b/file"), made.watch("a/b")
    if not before:
        (made.top / "a" / "b" / "file").chmod(0o600)
    made.is_found(watched[0], "a/b/file")
    made.is_found(watched[1], "a/b")


@pytest.mark.parametrize("options", ["", "index=on", "metacopy=on,redirect_dir=on"])
def test_renamed_after_it_was_copied_up(make: Make, options: str) -> None:
    made = make(options=options)
    watched = made.watch("a/b/file")
    (made.top / "a" / "b" / "file").write_bytes(b"new")
    (made.top / "a" / "b" / "file").rename(made.top / "a" / "moved")
    made.is_found(watched, "a/moved")
    # The file at its old name is another one.
    (made.top / "a" / "b" / "file").write_bytes(b"another")
    made.is_found(watched, "a/moved")
    other = made.watch("a/b/file")
    made.is_found(other, "a/b/file")


@pytest.mark.parametrize("options", ["redirect_dir=on", "redirect_dir=on,index=on"])
def test_directories_that_were_redirected(make: Make, options: str) -> None:
    made = make(options=options)
    names = ("a/b", "a/b/file", "a/b/c", "a/b/c/file")
    watched = [made.watch(name) for name in names]
    (made.top / "a" / "b").rename(made.top / "a" / "B")  # a name in the same directory
    for one, name in zip(watched, names, strict=True):
        made.is_found(one, name.replace("a/b", "a/B"))
    (made.top / "a" / "B" / "c").rename(made.top / "C")  # and an absolute path
    made.is_found(watched[2], "C")
    made.is_found(watched[3], "C/file")
    made.is_found(watched[1], "a/B/file")
    # The old name may be another directory now.
    (made.top / "a" / "b").mkdir()
    (made.top / "a" / "b" / "file").touch()
    made.is_found(watched[1], "a/B/file")
    made.is_found(made.watch("a/b/file"), "a/b/file")


def test_merged_directories_of_several_layers(
    area: MountArea, watcher: Watcher, root: Root
) -> None:
    base = area.ext4("layers").mountpoint
    for number in range(3):
        layer = base / f"layer{number}"
        (layer / "shared" / "deep").mkdir(parents=True)
        (layer / "shared" / "deep" / f"file{number}").write_bytes(b"content")
    lower = ":".join(str(base / f"layer{number}") for number in range(3))
    top = area.overlay(lower=lower, upper_base=base).mountpoint
    made = _Made(top, base, base, watcher, root)
    for name in ("shared", "shared/deep", *(f"shared/deep/file{n}" for n in range(3))):
        made.is_found(made.watch(name), name)


def test_one_of_several_names_in_the_upper_layer(make: Make) -> None:
    made = make()
    (made.top / "first").write_bytes(b"content")
    (made.top / "a" / "second").hardlink_to(made.top / "first")
    made.is_found(made.watch("first"), "first", "a/second")


def test_a_deleted_file_has_no_path(make: Make) -> None:
    made = make()
    (made.top / "new").write_bytes(b"content")
    watched = made.watch("new")
    made.watcher.open(made.top / "new")
    (made.top / "new").unlink()
    assert why_not(made.root, OverlayLayers(made.root), made.identity(watched)).deleted


def test_with_user_attributes(make: Make) -> None:
    try:
        made = make(options="userxattr")
    except ProgramError:
        pytest.skip("needs overlay's userxattr")
    watched = made.watch("a/b/file")
    (made.top / "a" / "b" / "file").write_bytes(b"new")
    (made.top / "a" / "b" / "file").rename(made.top / "moved")
    made.is_found(watched, "moved")


def test_seen_through_a_bind_mount_alone(area: MountArea, make: Make) -> None:
    made = make()
    (area.path / "part").mkdir()
    part = area.bind(made.top / "a" / "b", area.path / "part")
    watched = made.watcher.add_inotify(part / "c" / "file", IN_OPEN)
    area.mount("tmpfs", "overlay", "tmpfs")  # over the whole
    made.root.renew()
    path = path_by(made.root, OverlayLayers(made.root), made.identity(watched))
    assert path == os.fsencode(part / "c" / "file")
    (part / "c" / "file").write_bytes(b"new")
    (part / "c" / "file").rename(part / "moved")
    path = path_by(made.root, OverlayLayers(made.root), made.identity(watched))
    assert path == os.fsencode(part / "moved")


@pytest.mark.parametrize("name", ["back\\", "colon:", "a:b", "with,comma", "new\nline", "ü\udcff"])
def test_layers_with_hostile_names(
    area: MountArea, watcher: Watcher, root: Root, name: str
) -> None:
    base = area.ext4("layers").mountpoint
    lower = base / name
    _fill(lower)
    for directory in ("upper", "work"):
        (base / directory).mkdir()
    escaped = str(lower).replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")
    options = f"lowerdir={escaped},upperdir={base}/upper,workdir={base}/work"
    top = area.mount("overlay", "top", "overlay", options)
    made = _Made(top, lower, base / "upper", watcher, root)
    made.is_found(made.watch("a/b/c/file"), "a/b/c/file")


def test_a_layer_that_repeats_the_path(area: MountArea, watcher: Watcher, root: Root) -> None:
    """A layer with a name that looks like a path on the overlay."""
    base = area.ext4("layers").mountpoint
    lower = base / "a" / "b" / "a" / "b"
    (lower / "a" / "b").mkdir(parents=True)
    for directory in (lower / "a" / "b", lower / "a", lower):
        (directory / "file").write_bytes(b"content")
    top = area.overlay(lower=lower, upper_base=base).mountpoint
    made = _Made(top, lower, base / "upper", watcher, root)
    for name in ("a/b/file", "a/file", "file", "a/b", "a"):
        made.is_found(made.watch(name), name)


def test_layers_that_were_moved_or_deleted(make: Make) -> None:
    made = make()
    watched = made.watch("a/b/c/file"), made.watch("a/b/c/other")
    made.lower.rename(made.lower.with_name("moved"))
    made.is_found(watched[0], "a/b/c/file")
    (made.lower.with_name("moved") / "a" / "b" / "c" / "other").unlink()
    outcome = ask(made.root, OverlayLayers(made.root), made.identity(watched[1]))
    for answer in outcome.resolved.values():  # the overlay may know the name still
        assert made.watcher.hears(watched[1], lambda path=answer.path: _open(path))


@contextlib.contextmanager
def _hidden(mountpoint: Path) -> Iterator[None]:
    run("mount", "-t", "tmpfs", "tmpfs", mountpoint)
    try:
        yield
    finally:
        unmount(mountpoint)


def test_layers_that_cannot_be_seen(make: Make) -> None:
    made = make()
    watched = made.watch("a/b/file")
    with _hidden(made.lower.parent):
        made.root.renew()
        failure = why_not(made.root, OverlayLayers(made.root), made.identity(watched))
        assert "is on no filesystem that is mounted in our own" in failure.why
    made.root.renew()
    made.is_found(watched, "a/b/file")


def test_without_the_capability(make: Make) -> None:
    made = make()
    identity = made.identity(made.watch("a/b/file"))
    made.root.superblocks.keep()
    with as_nobody():
        outcome = resolve([identity], [OverlayLayers(made.root)], lambda _identity, _path: None)
    assert "CAP_DAC_READ_SEARCH" in outcome.unresolved[identity].why


def test_an_overlay_on_an_overlay_is_left_to_the_scan(
    area: MountArea, make: Make, watcher: Watcher
) -> None:
    made = make()
    (area.path / "empty").mkdir()
    layers = f"lowerdir={made.top}:{area.path / 'empty'}"
    second = area.mount("overlay", "second", "overlay", layers)
    watched = watcher.add_inotify(second / "file", IN_OPEN)
    made.root.renew()
    failure = why_not(made.root, OverlayLayers(made.root), made.identity(watched))
    assert "not that of a file in a layer" in failure.why


def test_nothing_is_opened_in_the_freeze(make: Make) -> None:
    """Only the open descriptors answer; the upper layer is not walked."""
    made = make()
    watched = made.watch("a/b/file"), made.watch("a/b/c/file")
    (made.top / "a" / "b" / "c" / "file").write_bytes(b"new")
    (made.top / "a" / "b" / "c" / "file").rename(made.top / "moved")
    with made.root.superblocks.only_kept():
        failure = why_not(made.root, OverlayLayers(made.root), made.identity(watched[0]))
    assert failure.tried
    made.root.superblocks.keep()
    with made.root.superblocks.only_kept():
        before = set(os.listdir("/proc/self/fd"))
        answer = next(OverlayLayers(made.root)({made.identity(watched[0]): None}.keys()))
        assert answer.identity == made.identity(watched[0])
        assert set(os.listdir("/proc/self/fd")) == before


def test_the_commands_scan_nothing(make: Make, tmp_path: Path) -> None:
    made = make()
    names = ["a", "a/b/file", "a/b/c/file", "file"]
    for name in names:
        made.watch(name)
    (made.top / "file").write_bytes(b"new")
    (made.top / "file").rename(made.top / "moved")
    drop_caches()
    expected = {os.fsencode(made.top / name) for name in ("a", "a/b/file", "a/b/c/file", "moved")}
    options = options_for(made.watcher, new_work_dir(tmp_path))
    for report in (steps.pre_dump(options), steps.dump(options, steps.FreezeOptions())):
        assert {row.path for row in report.watches} == expected
        assert report.stats.scanned == 0
    (tmp_path / "again").mkdir()
    again = steps.pre_dump(options_for(made.watcher, tmp_path / "again"))
    assert again.stats.sources == {Source.OVERLAY: 4}
    taken = ps.take(ps.PsOptions(pid=made.watcher.pid, config=NO_HINTS))
    assert {row.path for row in taken.watches} == expected


def test_in_a_container_whose_layers_only_we_see(area: MountArea, make: Make) -> None:
    made = make()
    rootfs = area.path / "rootfs"
    for name in ("proc", "tmp", "layers"):
        (made.top / name).mkdir()
    rootfs.mkdir()
    area.bind(made.top, rootfs)
    with Watcher(unshare={"mount"}, rootfs=rootfs) as inside, open_root(inside.pid) as root:
        watched = inside.add_inotify("/a/b/c/file", IN_OPEN)
        identity = watched_identity(inside, watched)
        drop_caches()
        assert path_by(root, OverlayLayers(root), identity) == b"/a/b/c/file"


def test_no_listener_on_the_overlay_is_waited_for(make: Make) -> None:
    """As in an engine's pause: the task that the kernel asks before each open has stopped."""
    made = make()
    watched = [made.watch(name) for name in ("a/b/file", "a/b/c/file", "a", "file")]
    (made.top / "file").write_bytes(b"new")
    (made.top / "file").rename(made.top / "moved")
    identities = [made.identity(one) for one in watched]
    with Watcher() as listener:
        group = listener.fanotify(flags=_FAN_CLASS_CONTENT)
        mask = _FAN_OPEN_PERM | FAN_ONDIR
        listener.add_fanotify(made.top, mask, "filesystem", fd=group)
        drop_caches()

        def resolve_all() -> set[bytes]:
            outcome = resolve(
                identities,
                [OverlayLayers(made.root)],
                lambda identity, path: disproof(made.root, identity, path),
            )
            return {answer.path for answer in outcome.resolved.values()}

        with pytest.raises(TimeoutError):  # the listener blocks each open
            call_in_child(lambda: os.listdir(made.top / "a"), 0.5)
        found = call_in_child(resolve_all, 20)
    names = ("a/b/file", "a/b/c/file", "a", "moved")
    assert found == {os.fsencode(made.top / name) for name in names}


def test_the_module_imports_no_slow_module() -> None:
    slow = {"sqlalchemy", "alembic", "typer", "pydantic", "asyncio", "google.protobuf", "sqlite3"}
    text = f"import irmapdb.resolve, sys; print(sorted(set(sys.modules) & {slow}))"
    assert run(sys.executable, "-c", text).strip() == b"[]"
