"""Where several inodes have one handle, no path is proved; where they have not, it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from irmapdb.audit import check
from irmapdb.audit.findings import AuditVerdict
from irmapdb.checkpoint import steps
from irmapdb.kernel.proof import disproof
from irmapdb.kernel.root import Root
from irmapdb.model import Identity, StaleReason
from tests.support.area import MountArea
from tests.support.features import require_filesystem
from tests.support.kernel_paths import watched_identity
from tests.support.notify import IN_OPEN
from tests.support.programs import run
from tests.support.stepping import NO_HINTS
from tests.support.watcher import Watcher

# irmapdb knows the filesystem of a layer if it can see every filesystem of the machine.
pytestmark = pytest.mark.alone

PARTED = ("overlay-lower", "overlay-two-filesystems", "overlay-xino")

Watch = Callable[[Path], Identity]


@pytest.fixture
def watch(watcher: Watcher) -> Watch:
    """Watch a path; its identity as fdinfo has it."""
    return lambda path: watched_identity(watcher, watcher.add_inotify(path, IN_OPEN))


def _linked_layer(layer: Path) -> Path:
    layer.mkdir()
    (layer / "file").write_bytes(b"content")
    (layer / "hard").hardlink_to(layer / "file")
    return layer


@pytest.mark.parametrize("kind", PARTED)
def test_the_names_of_a_file_in_a_lower_layer_are_ambiguous(
    area: MountArea, root: Root, watcher: Watcher, watch: Watch, kind: str
) -> None:
    place = area.place(kind)
    names = (place.linked, place.directory / "dir" / "hard")
    first, other = (watch(name) for name in names)
    # They look alike, and are two files.
    assert first == other
    assert watcher.hears(watcher.watched[0], names[0].read_bytes)
    assert not watcher.hears(watcher.watched[0], names[1].read_bytes)
    for _ in range(2):
        for name in names:
            assert disproof(root, first, os.fsencode(name)) is StaleReason.AMBIGUOUS
        names[1].write_bytes(b"new")  # has a file of its own from now on
    assert names[1].stat().st_ino != names[0].stat().st_ino
    assert disproof(root, first, os.fsencode(place.directory / "file")) is StaleReason.REPLACED


@pytest.mark.parametrize("options", ["index=on", "index=on,nfs_export=on"])
def test_with_an_index_all_names_are_one_file(
    area: MountArea, root: Root, watcher: Watcher, watch: Watch, options: str
) -> None:
    base = area.ext4("layers").mountpoint
    made = area.overlay(lower=_linked_layer(base / "lower"), upper_base=base, options=options)
    first = watch(made.mountpoint / "file")
    hard = made.mountpoint / "hard"
    assert watcher.hears(watcher.watched[0], hard.read_bytes)
    assert disproof(root, first, os.fsencode(hard)) is None
    hard.chmod(0o600)  # copied up, for both names
    for name in ("file", "hard"):
        assert disproof(root, first, os.fsencode(made.mountpoint / name)) is None


def test_on_a_read_only_overlay_all_names_are_one_file(
    area: MountArea, root: Root, watcher: Watcher, watch: Watch
) -> None:
    base = area.ext4("layers").mountpoint
    (base / "below").mkdir()
    layers = f"lowerdir={_linked_layer(base / 'lower')}:{base / 'below'}"
    top = area.mount("overlay", "read-only", "overlay", layers)
    first = watch(top / "file")
    assert watcher.hears(watcher.watched[0], (top / "hard").read_bytes)
    assert disproof(root, first, os.fsencode(top / "hard")) is None


def test_a_file_of_the_upper_layer_has_any_number_of_names(
    area: MountArea, root: Root, watch: Watch
) -> None:
    place = area.place("overlay-upper")
    first = watch(place.directory / "dir" / "file")
    assert disproof(root, first, os.fsencode(place.directory / "dir" / "hard")) is None


def _squashed(area: MountArea, name: str) -> Path:
    content = area.path / f"{name}-content"
    (content / name).mkdir(parents=True)
    (content / name / "file").write_bytes(name.encode())
    return area.squashfs(content, name).mountpoint


def test_a_layer_without_a_uuid_is_found_by_the_handles_that_open(
    area: MountArea, root: Root, watcher: Watcher, watch: Watch
) -> None:
    layers = [_squashed(area, name) for name in ("apple", "banana")]
    (layers_of_one := area.path / "more-content" / "cherry").mkdir(parents=True)
    for number in range(9):
        (layers_of_one / f"file{number}").touch()
    layers.append(area.squashfs(layers_of_one.parent, "more").mountpoint)
    base = area.ext4("layers").mountpoint
    top = area.overlay(lower=":".join(map(str, layers)), upper_base=base).mountpoint
    apple, banana, cherry = top / "apple", top / "banana", top / "cherry"
    assert watch(apple / "file").handle == watch(banana / "file").handle
    for file in (apple / "file", banana / "file"):
        assert disproof(root, watch(file), os.fsencode(file)) is StaleReason.AMBIGUOUS
    # A number that only one layer has.
    alone = cherry / "file8"
    assert disproof(root, watch(alone), os.fsencode(alone)) is None
    assert watcher.hears(watcher.watched[-1], alone.read_bytes)
    # Directories have numbers of their own.
    for path, other in ((apple, banana), (banana, apple)):
        assert disproof(root, watch(path), os.fsencode(path)) is None
        assert watcher.hears(watcher.watched[-1], lambda path=path: list(path.iterdir()))
        assert disproof(root, watch(path), os.fsencode(other)) is StaleReason.AMBIGUOUS
    assert disproof(root, watch(top), os.fsencode(top)) is None


def test_with_xino_they_are(area: MountArea, root: Root, watch: Watch) -> None:
    layers = [_squashed(area, name) for name in ("apple", "banana")]
    base = area.ext4("layers").mountpoint
    lower = f"{layers[0]}:{layers[1]}"
    top = area.overlay(lower=lower, upper_base=base, options="xino=on").mountpoint
    files = (top / "apple" / "file", top / "banana" / "file")
    for path, other in (files, files[::-1]):
        assert disproof(root, watch(path), os.fsencode(path)) is None
        assert disproof(root, watch(path), os.fsencode(other)) is StaleReason.AMBIGUOUS


def test_a_copy_of_a_layer_has_its_uuid(area: MountArea, root: Root, watch: Watch) -> None:
    first = area.ext4("first").mountpoint
    (first / "apple").mkdir()
    run("sync")
    run("cp", area.path / "first.image", area.path / "copy.image")
    second = area.mount(area.path / "copy.image", "second", "ext4", "loop")
    (second / "apple").rename(second / "banana")
    base = area.ext4("layers").mountpoint
    top = area.overlay(lower=f"{first}:{second}", upper_base=base).mountpoint
    apple, banana = top / "apple", top / "banana"
    assert watch(apple).handle == watch(banana).handle
    for path, other in ((apple, banana), (banana, apple)):
        assert disproof(root, watch(path), os.fsencode(path)) is None
        assert disproof(root, watch(path), os.fsencode(other)) is StaleReason.AMBIGUOUS


def test_one_layer_without_a_uuid_is_enough(area: MountArea, root: Root, watch: Watch) -> None:
    base = area.ext4("layers").mountpoint
    top = area.overlay(lower=_squashed(area, "apple"), upper_base=base).mountpoint
    for path in (top / "apple", top / "apple" / "file"):
        assert disproof(root, watch(path), os.fsencode(path)) is None


def test_the_directory_in_a_snapshot_in_place_of_a_subvolume(
    area: MountArea, root: Root, watch: Watch
) -> None:
    top = area.btrfs().mountpoint
    for name in ("sub", "sub/one", "sub/other"):
        run("btrfs", "subvolume", "create", top / name)
    run("btrfs", "subvolume", "snapshot", top / "sub", top / "snapshot")
    placeholder = top / "snapshot" / "one"
    assert watch(placeholder) == watch(top / "snapshot" / "other")
    assert disproof(root, watch(placeholder), os.fsencode(placeholder)) is StaleReason.AMBIGUOUS
    for path in (top / "sub" / "one", top / "snapshot"):
        assert disproof(root, watch(path), os.fsencode(path)) is None


def test_files_of_tracefs_have_no_number_of_their_own(
    area: MountArea, root: Root, watch: Watch
) -> None:
    require_filesystem("tracefs")
    top = area.mount("tracefs", "tracefs", "tracefs")
    path = top / "events" / "enable"
    assert disproof(root, watch(path), os.fsencode(path)) is StaleReason.AMBIGUOUS


def test_audit_does_not_call_such_a_path_another_file(
    area: MountArea, watcher: Watcher, tmp_path: Path
) -> None:
    place = area.place("overlay-lower")
    file = place.directory / "file"
    watcher.add_inotify(file)
    work = tmp_path / "work"
    work.mkdir()
    top = (os.fsencode(place.mountpoint),)
    steps.pre_dump(steps.StepOptions(watcher.pid, work, scan_paths=top, config=NO_HINTS))
    (place.directory / "second").hardlink_to(file)
    options = check.AuditOptions(work / "irmap.db", config=NO_HINTS)
    (finding,) = check.audit(options).findings
    assert (finding.verdict, finding.evidence.reason) == (
        AuditVerdict.UNREACHABLE,
        StaleReason.AMBIGUOUS,
    )


def test_the_root_of_securityfs_has_a_common_number(
    area: MountArea, root: Root, watch: Watch
) -> None:
    require_filesystem("securityfs")
    top = area.mount("securityfs", "securityfs", "securityfs")
    assert disproof(root, watch(top), os.fsencode(top)) is StaleReason.AMBIGUOUS
    others = [path for path in top.iterdir() if path.lstat().st_ino != top.lstat().st_ino]
    assert others
    for path in others:
        assert disproof(root, watch(path), os.fsencode(path)) is None
