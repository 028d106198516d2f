"""Overlays with layers that a handle cannot distinguish: never another file's path."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from irmapdb.checkpoint import steps
from irmapdb.checkpoint.steps import FreezeOptions
from irmapdb.kernel.fs import overlay
from irmapdb.kernel.proof import disproof
from irmapdb.kernel.root import Root
from irmapdb.model import FileHandle, StaleReason
from irmapdb.node import ps
from tests.support.area import MountArea
from tests.support.features import require_program
from tests.support.filesystems import drop_caches
from tests.support.kernel_paths import watched_identity
from tests.support.notify import IN_OPEN
from tests.support.programs import ProgramError, run
from tests.support.stepping import new_work_dir, options_for
from tests.support.watcher import Watched, Watcher

# irmapdb knows the filesystem of a layer if it can see every filesystem of the machine.
pytestmark = pytest.mark.alone

CLONES = ("ext4", "xfs", "erofs")

_UUID = "d2c44d59-22c2-4d6c-9a0a-5ff8ae3b0a2f"


def _hears(watcher: Watcher, watched: Watched, path: Path) -> bool:
    return watcher.hears(watched, lambda: os.close(os.open(path, os.O_RDONLY)))


def _clones(area: MountArea, kind: str) -> list[Path]:
    """Two layers with one UUID: `dir/file` of the first has the handle of `dir/other`."""
    if kind == "erofs":
        require_program("mkfs.erofs", package="erofs-utils")
        return [_erofs(area, "one", "file"), _erofs(area, "two", "other")]
    made = area.ext4("one") if kind == "ext4" else area.xfs("one")
    top = made.mountpoint
    (top / "dir").mkdir()
    (top / "dir" / "file").write_bytes(b"content")
    run("umount", top)
    copy = area.path / "copy.image"
    run("cp", "--sparse=always", made.image, copy)
    more = ",nouuid" if kind == "xfs" else ""
    run("mount", "-t", kind, "-o", "loop", made.image, top)
    second = area.mount(copy, "two", kind, f"loop{more}")
    (second / "dir" / "file").rename(second / "dir" / "other")
    return [top, second]


def _erofs(area: MountArea, name: str, file: str) -> Path:
    content = area.path / f"{name}-content"
    (content / "dir").mkdir(parents=True)
    (content / "dir" / file).write_bytes(b"content")
    image = area.path / f"{name}.image"
    run("mkfs.erofs", "-U", _UUID, image, content)
    return area.mount(image, name, "erofs", "loop,ro")


def _read_only(area: MountArea, layers: list[Path], name: str = "top", more: str = "") -> Path:
    return area.mount("overlay", name, "overlay", f"lowerdir={':'.join(map(str, layers))}{more}")


@pytest.fixture(params=CLONES)
def cloned(area: MountArea, request: pytest.FixtureRequest) -> list[Path]:
    """Two layers with one UUID, of each type."""
    return _clones(area, request.param)


def test_two_layers_with_one_uuid(
    area: MountArea, cloned: list[Path], root: Root, watcher: Watcher
) -> None:
    top = _read_only(area, cloned)
    file, other = top / "dir" / "file", top / "dir" / "other"
    watches = [watcher.add_inotify(path, IN_OPEN) for path in (file, other)]
    watches += [watcher.add_fanotify(path) for path in (file, other)]
    assert _hears(watcher, watches[0], file)
    assert not _hears(watcher, watches[0], other)
    identities = {watched_identity(watcher, one) for one in watches[:2]}
    for identity in identities:
        for path in (file, other):
            assert disproof(root, identity, os.fsencode(path)) is StaleReason.AMBIGUOUS


def test_no_command_answers_with_the_other_layers_file(
    area: MountArea, cloned: list[Path], watcher: Watcher, tmp_path: Path
) -> None:
    top = _read_only(area, cloned)
    watcher.add_inotify(top / "dir" / "file", IN_OPEN)
    watcher.add_fanotify(top / "dir" / "file")
    drop_caches()
    options = options_for(watcher, new_work_dir(tmp_path), top)
    for report in (steps.pre_dump(options), steps.dump(options, FreezeOptions())):
        assert [row.path for row in report.watches] == [None, None]
        assert all("may be another file" in (row.why or "") for row in report.watches)
    taken = ps.take(ps.PsOptions(pid=watcher.pid, search=True))
    assert [row.path for row in taken.watches] == [None, None]


def test_a_clone_that_is_no_layer_does_no_harm(
    area: MountArea, cloned: list[Path], root: Root, watcher: Watcher
) -> None:
    """One layer, and its clone mounted beside it."""
    base = area.ext4("upper").mountpoint
    top = area.overlay(lower=cloned[0], upper_base=base).mountpoint
    file = top / "dir" / "file"
    watched = watcher.add_inotify(file, IN_OPEN)
    assert disproof(root, watched_identity(watcher, watched), os.fsencode(file)) is None


def test_a_layer_that_was_unmounted_is_one_still(
    area: MountArea, cloned: list[Path], root: Root, watcher: Watcher
) -> None:
    """The remaining clone has the watched handle too."""
    top = _read_only(area, cloned)
    file, other = top / "dir" / "file", top / "dir" / "other"
    watched = watcher.add_inotify(file, IN_OPEN)
    elsewhere = area.path / "elsewhere"
    elsewhere.mkdir()
    for change in (("mount", "--move", cloned[0], elsewhere), ("umount", "-l", elsewhere)):
        run(*change)
        identity = watched_identity(watcher, watched)
        for path in (file, other):
            assert disproof(root, identity, os.fsencode(path)) is StaleReason.AMBIGUOUS
    run("mount", "-t", "tmpfs", "tmpfs", cloned[0])
    for path in (file, other):
        assert disproof(root, identity, os.fsencode(path)) is StaleReason.AMBIGUOUS


def test_only_files_that_one_of_the_clones_has_get_a_path(
    area: MountArea, root: Root, watcher: Watcher
) -> None:
    layers = _clones(area, "ext4")
    (layers[1] / "dir" / "later").write_bytes(b"content")
    top = _read_only(area, layers)
    later = top / "dir" / "later"
    watched = watcher.add_inotify(later, IN_OPEN)
    assert disproof(root, watched_identity(watcher, watched), os.fsencode(later)) is None
    assert _hears(watcher, watched, later)


def test_without_uuids_in_the_handles(area: MountArea, root: Root, watcher: Watcher) -> None:
    """uuid=off: the layers have UUIDs, their handles not."""
    layers = _clones(area, "ext4")
    (layers[1] / "dir" / "later").write_bytes(b"content")
    base = area.ext4("upper").mountpoint
    lower = ":".join(map(str, layers))
    try:
        top = area.overlay(lower=lower, upper_base=base, options="uuid=off").mountpoint
    except ProgramError:
        pytest.skip("needs overlay's uuid=off")
    for name, reason in (("file", StaleReason.AMBIGUOUS), ("later", None)):
        path = top / "dir" / name
        watched = watcher.add_inotify(path, IN_OPEN)
        assert disproof(root, watched_identity(watcher, watched), os.fsencode(path)) is reason


HOSTILE = ("back\\", "colon:", "a:b", "comma,index=on", "two\\\\", "new\nline", "\\134", "::")


def _escaped(path: Path) -> str:
    text = str(path).replace("\\", "\\\\").replace(":", "\\:")
    return text.replace(",", "\\,")


@pytest.mark.parametrize("name", HOSTILE)
def test_layers_with_hostile_names_are_counted(
    area: MountArea, root: Root, watcher: Watcher, name: str
) -> None:
    clones = _clones(area, "ext4")
    named = area.path / name
    named.mkdir()
    area.bind(clones[0], named)
    base = area.ext4("upper").mountpoint
    for directory in ("upper", "work"):
        (base / directory).mkdir()
    top = area.path / "top"
    top.mkdir()
    lower = f"lowerdir={_escaped(named)}:{clones[1]}"
    area.mount("overlay", "top", "overlay", f"{lower},upperdir={base}/upper,workdir={base}/work")
    root.renew()
    (mount,) = (one for one in root.mounts.all if one.mountpoint == os.fsencode(top))
    layers = overlay.layers_of(mount.super_options)
    assert layers.lower == (os.fsencode(named), os.fsencode(clones[1]))
    assert layers.parts_links
    file = top / "dir" / "file"
    watched = watcher.add_inotify(file, IN_OPEN)
    identity = watched_identity(watcher, watched)
    for path in (file, top / "dir" / "other"):
        assert disproof(root, identity, os.fsencode(path)) is StaleReason.AMBIGUOUS


@pytest.mark.parametrize(
    ("options", "lower"),
    [
        (rb"rw,lowerdir=/one\134:other,upperdir=/u,workdir=/w", [b"/one:other"]),
        (rb"rw,lowerdir=/one\134\134:/other", [b"/one\\", b"/other"]),
        (rb"rw,lowerdir=/one\134::/other", [b"/one:", b"/other"]),
        (rb"rw,lowerdir=/one::/data::/more,upperdir=/u,workdir=/w", [b"/one"]),
        (rb"rw,lowerdir=/one:/two::/data", [b"/one", b"/two"]),
        (rb"rw,lowerdir+=/one:x,lowerdir+=/other\134,datadir+=/d", [b"/one:x", b"/other\\"]),
        (rb"rw,lowerdir+=/one\054lowerdir+=/other,upperdir=/u", [b"/one,lowerdir+=/other"]),
        (rb"rw,lowerdir=l/ABC:l/DEF", [b"l/ABC", b"l/DEF"]),
        (b"rw", []),
    ],
)
def test_names_of_layers(options: bytes, lower: list[bytes]) -> None:
    layers = overlay.layers_of(options)
    assert list(layers.lower) == lower
    assert layers.parts_links == (not lower or b"upperdir=" in options)


@pytest.mark.parametrize("data", [b"", bytes(22), bytes(23)])
def test_a_handle_that_is_cut_short(data: bytes) -> None:
    wrapped = overlay.unwrap(FileHandle(0xF8, data))
    assert wrapped is None or wrapped.handle.data == b""
    assert overlay.unwrap(FileHandle(0x81, data)) is None


@pytest.fixture
def twice(area: MountArea) -> Path:
    """An overlay on an overlay of two filesystems: its numbers are not unique."""
    layers = [area.ext4(name).mountpoint for name in ("one", "two")]
    for layer in layers:
        (layer / "dir").mkdir()
        (layer / "dir" / layer.name).write_bytes(b"content")
    below = area.mount("overlay", "below", "overlay", f"lowerdir={layers[0]}:{layers[1]}")
    (area.path / "empty").mkdir()
    return _read_only(area, [below, area.path / "empty"])


def test_an_overlay_on_an_overlay(twice: Path, root: Root, watcher: Watcher) -> None:
    one, two = twice / "dir" / "one", twice / "dir" / "two"
    watches = [watcher.add_inotify(path, IN_OPEN) for path in (one, two)]
    shown = [watched_identity(watcher, one) for one in watches]
    assert shown[0] == shown[1]
    assert _hears(watcher, watches[0], one)
    assert not _hears(watcher, watches[0], two)
    for path in (one, two):
        assert disproof(root, shown[0], os.fsencode(path)) is not None


def test_an_overlay_on_an_overlay_of_one_filesystem(
    area: MountArea, root: Root, watcher: Watcher
) -> None:
    """All numbers are those of one ext4."""
    base = area.ext4("layers").mountpoint
    for name in ("one", "two"):
        (base / name / f"dir-{name}").mkdir(parents=True)
        (base / name / f"dir-{name}" / name).write_bytes(b"content")
    below = area.mount("overlay", "below", "overlay", f"lowerdir={base}/one:{base}/two")
    top = area.mount("overlay", "top", "overlay", f"lowerdir={below}/dir-one:{below}/dir-two")
    for name in ("one", "two"):
        watched = watcher.add_inotify(top / name, IN_OPEN)
        identity = watched_identity(watcher, watched)
        assert identity.handle is None or identity.handle.type != 0xF8
        assert disproof(root, identity, os.fsencode(top / name)) is None
        assert _hears(watcher, watched, top / name)


def test_a_file_that_is_copied_up_from_a_clone(
    area: MountArea, root: Root, watcher: Watcher
) -> None:
    layers = _clones(area, "ext4")
    base = area.ext4("upper").mountpoint
    lower = ":".join(map(str, layers))
    top = area.overlay(lower=lower, upper_base=base).mountpoint
    file = top / "dir" / "file"
    watched = watcher.add_inotify(file, IN_OPEN)
    file.write_bytes(b"new")
    drop_caches()
    identity = watched_identity(watcher, watched)
    for name in ("file", "other"):
        path = top / "dir" / name
        reason = disproof(root, identity, os.fsencode(path))
        assert reason is not None or _hears(watcher, watched, path)
        if name == "other":
            assert reason is not None


def _metacopy(area: MountArea) -> Path:
    base = area.ext4("layers").mountpoint
    (base / "lower").mkdir()
    (base / "lower" / "file").write_bytes(b"content")
    options = "metacopy=on,redirect_dir=on"
    made = area.overlay(lower=base / "lower", upper_base=base, options=options)
    (made.mountpoint / "file").chmod(0o600)
    return made.mountpoint


def _data_only(area: MountArea) -> Path:
    base = area.ext4("layers").mountpoint
    for name in ("data", "meta", "upper", "work"):
        (base / name).mkdir()
    (base / "data" / "file").write_bytes(b"content")
    below = f"lowerdir={base}/data,upperdir={base}/meta,workdir={base}/work"
    top = area.mount("overlay", "below", "overlay", f"{below},metacopy=on,redirect_dir=on")
    (top / "file").chmod(0o600)
    run("umount", top)
    run("mount", "-t", "tmpfs", "tmpfs", top)
    shutil.rmtree(base / "work")
    os.setxattr(base / "meta" / "file", "trusted.overlay.redirect", b"/file")
    layers = f"lowerdir={base}/meta::{base}/data,metacopy=on,redirect_dir=on"
    return area.mount("overlay", "top", "overlay", layers)


@pytest.mark.parametrize("make", [_metacopy, _data_only])
def test_metacopy_and_layers_for_data(
    area: MountArea, root: Root, watcher: Watcher, make: Callable[[MountArea], Path]
) -> None:
    try:
        top = make(area)
    except ProgramError as error:
        pytest.skip(f"needs overlay's metacopy and data layers: {error}")
    file = top / "file"
    watched = watcher.add_inotify(file, IN_OPEN)
    for _ in range(2):
        assert disproof(root, watched_identity(watcher, watched), os.fsencode(file)) is None
        assert _hears(watcher, watched, file)
        drop_caches()


def test_a_bind_mount_of_an_overlay(area: MountArea, root: Root, watcher: Watcher) -> None:
    place = area.place("overlay-lower")
    (area.path / "bound").mkdir()
    bound = area.bind(place.directory / "dir", area.path / "bound")
    watched = watcher.add_inotify(bound / "file", IN_OPEN)
    for path in (bound / "file", place.directory / "dir" / "file"):
        assert disproof(root, watched_identity(watcher, watched), os.fsencode(path)) is None
        assert _hears(watcher, watched, path)


@pytest.mark.parametrize("kind", ["squashfs", "erofs"])
def test_one_layer_of_each_image(area: MountArea, root: Root, watcher: Watcher, kind: str) -> None:
    """erofs has a UUID, squashfs none."""
    layers = []
    for number, name in enumerate(("squashfs", "erofs")):
        content = area.path / f"{name}-content" / name
        content.mkdir(parents=True)
        # A filesystem without UUID may have a low number although it is no layer.
        for one in range(20 * (number + 1)):
            (content / f"file{one}").write_bytes(b"content")
        made = area.squashfs if name == "squashfs" else area.erofs
        layers.append(made(content.parent, name).mountpoint)
    top = _read_only(area, layers)
    file = max((top / kind).iterdir(), key=lambda one: one.stat().st_ino)
    watched = watcher.add_inotify(file, IN_OPEN)
    assert disproof(root, watched_identity(watcher, watched), os.fsencode(file)) is None
    assert _hears(watcher, watched, file)
