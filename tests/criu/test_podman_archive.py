"""Archives that podman exports: check beside `podman container restore --import`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from irmapdb.archive.dumped import read_dumped
from irmapdb.archive.origins import OriginKind
from irmapdb.criu.check.restore import RestoreVerdict, check_images
from tests.support.cli import irmapdb
from tests.support.features import require_program
from tests.support.hook import installed_for_runc
from tests.support.notify import IN_ATTRIB, IN_OPEN
from tests.support.podman import PodmanContainer
from tests.support.programs import SYSTEM_PATH, ProgramError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.watcher import Watched


class Place(NamedTuple):
    """A container with a file from each source, and the files of the host."""

    container: PodmanContainer
    data: Path


_IN_DONT_FOLLOW = 0x02000000

KINDS = {
    "/srv/app/settings": OriginKind.ROOT,
    "/srv/state": OriginKind.DIFF,
    "/scratch/file": OriginKind.TMPFS,
    "/dev/shm/segment": OriginKind.TMPFS,
    "/data/file": OriginKind.BIND,
    "/vol/row": OriginKind.VOLUME,
}


@pytest.fixture
def place(rig: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    require_program("runc")
    require_program("podman")
    monkeypatch.setenv("IRMAPDB_HOOK_PAUSED_TIMEOUT", "20")  # enough, on a busy machine as well
    data = tmp_path / "data"
    data.mkdir()
    (data / "file").touch()
    (tmp_path / "other" / "sub").mkdir(parents=True)
    (tmp_path / "deep").mkdir()
    path = os.pathsep.join((str(rig), SYSTEM_PATH))
    options = ["-v", f"{data}:/data", "-v", "vol:/vol", "--tmpfs", "/scratch"]
    options += ["-v", f"{tmp_path}/deep:/mnt/deep/dir", "-v", f"{tmp_path}/other:/var/run/other"]
    with (
        PodmanContainer(tmp_path / "podman", path, options) as container,
        installed_for_runc(tmp_path),
    ):
        yield Place(container, data)


def _watch_all(container: PodmanContainer) -> dict[str, Watched]:
    """A watch on a file of each source, each on an instance of its own."""
    watches = {}
    for path in KINDS:
        if path not in {"/srv/app/settings", "/data/file"}:
            container.write(path)
        watches[path] = container.add_inotify(path, IN_OPEN, fd=container.inotify())
    return watches


def _hears(container: PodmanContainer, watches: dict[str, Watched]) -> None:
    for path, watched in watches.items():
        file = Path(f"/proc/{container.pid}/root{path}")
        assert container.hears(watched, file.read_bytes), path


def test_verdict_and_restore(place: Place, tmp_path: Path) -> None:
    container = place.container
    watches = _watch_all(container)
    packed = tmp_path / "packed"
    container.export(packed, "--leave-running", "--compress", "gzip")
    image = tmp_path / "image"
    container.save_image(image)
    without = tmp_path / "without"
    container.export(without, "--leave-running", "--ignore-rootfs")
    archive = tmp_path / "archive"
    container.export(archive)
    assert archive.read_bytes()[:4] == b"\x28\xb5\x2f\xfd"
    dumped = read_dumped(archive)
    told = {os.fsdecode(one.watch.path or b""): one.kind for one in dumped.watches}
    assert told == KINDS
    for other in (packed, image):
        found = read_dumped(other)
        assert [one.where for one in found.watches] == [one.where for one in dumped.watches]
        assert found.container == dumped.container
    assert dumped.container.engine == "podman"
    assert dumped.container.name == container.name
    assert dumped.container.image == "localhost/irmapdb-test:1"
    assert dumped.stats is not None
    assert dumped.stats.figures["frozen_us"] > 0

    assert check_images(archive).right
    container.restore_from(archive)
    _hears(container, watches)
    for subject in (str(container.pid), dumped.container.id[:12]):
        assert irmapdb("diff", archive, subject).code == 0
    nothing = irmapdb("diff", archive, "no-such-container")
    assert nothing.code == 1
    assert "no such file; no container" in nothing.err
    container.kill()

    # The image lacks the files that the container made.
    _fails(container, without, None, "/srv/state")
    for path, hide, root in _changes(place):
        unhide = hide()
        try:
            with container.mounted_image() as mounted:
                _fails(container, archive, mounted if root else None, path)
        finally:
            unhide()
    container.restore_from(archive)
    _hears(container, watches)


def test_what_is_neither_in_the_image_nor_packed(place: Place, tmp_path: Path) -> None:
    container, other = place.container, tmp_path / "other"
    settings = "/srv/app/settings"
    inside = Path(f"/proc/{container.pid}/root{settings}")
    inside.unlink()
    inside.write_text("of the container")
    container.write("/srv/state")
    # runc makes /run and /mnt/deep for the mounts below them. podman packs no file that the
    # container replaced. The image has /var/run as a link to /run.
    kinds = {
        "/run": OriginKind.ENGINE,
        "/mnt/deep": OriginKind.DIFF,
        settings: OriginKind.ROOT,
        "/run/other/sub": OriginKind.BIND,
    }
    watches = {path: container.add_inotify(path, IN_OPEN, fd=container.inotify()) for path in kinds}
    without = tmp_path / "without"
    container.export(without, "--leave-running", "--ignore-rootfs")
    archive = tmp_path / "archive"
    container.export(archive)
    report = check_images(archive)
    assert {os.fsdecode(one.watch.path or b""): one.kind for one in report.watches} == kinds
    (bind,) = (one for one in report.watches if one.kind is OriginKind.BIND)
    assert bind.mount_source == bytes(other)
    assert report.right
    (replaced,) = (one for one in report.watches if one.kind is OriginKind.ROOT)
    assert replaced.verdict is RestoreVerdict.REPLACED
    container.restore_from(archive)
    inside = Path(f"/proc/{container.pid}/root{settings}")
    assert inside.read_text() == "from the image"
    for path, watched in watches.items():
        seen = os.fsencode(f"/proc/{container.pid}/root{path}")
        assert container.hears(watched, lambda seen=seen: os.close(os.open(seen, os.O_RDONLY)))
    container.kill()
    # Without the changes of the root, only the root itself shows it.
    verdicts = {one.watch.path: one.verdict for one in check_images(without).watches}
    assert verdicts[b"/run"] is verdicts[b"/mnt/deep"] is RestoreVerdict.BROUGHT
    assert verdicts[os.fsencode(settings)] is RestoreVerdict.MISSING
    with container.mounted_image() as mounted:
        assert check_images(without, mounted).right
    container.restore_from(without)
    container.kill()


def test_a_watch_on_a_link_that_the_container_made(place: Place, tmp_path: Path) -> None:
    container = place.container
    link = Path(f"/proc/{container.pid}/root/srv/link")
    link.symlink_to("app")
    watched = container.add_inotify("/srv/link", IN_ATTRIB | _IN_DONT_FOLLOW)
    archive = tmp_path / "archive"
    container.export(archive)
    (one,) = check_images(archive).watches
    assert (one.verdict, one.right) == (RestoreVerdict.LINKED, False)
    container.restore_from(archive)
    link = Path(f"/proc/{container.pid}/root/srv/link")
    assert not container.hears(watched, lambda: os.utime(link, follow_symlinks=False))
    assert container.hears(watched, lambda: os.utime(link))
    container.kill()


def test_a_directory_that_was_removed_and_made_again(place: Place, tmp_path: Path) -> None:
    container = place.container
    app = Path(f"/proc/{container.pid}/root/srv/app")
    shutil.rmtree(app)
    app.mkdir()
    container.write("/srv/app/new")
    container.add_inotify("/srv/app/new")
    archive = tmp_path / "archive"
    container.export(archive)
    # podman unpacks the new files, and then removes the directory.
    _fails(container, archive, None, "/srv/app/new")


def test_a_mount_without_its_source_or_its_content(place: Place, tmp_path: Path) -> None:
    container, other = place.container, tmp_path / "other"
    container.write("/vol/row")
    container.add_inotify("/srv/app/settings", fd=container.inotify())
    without = tmp_path / "without"
    container.export(without, "--leave-running")
    container.add_inotify("/vol/row", fd=container.inotify())
    container.add_inotify("/vol", fd=container.inotify())
    archive = tmp_path / "archive"
    container.export(archive, "--ignore-volumes")
    other.rename(tmp_path / "elsewhere")
    report = check_images(without)
    assert [one.right for one in report.watches] == [True]
    (problem,) = report.problems
    assert f"needs {other}: No such file" in problem.why
    assert not report.right
    found = irmapdb("check", "--images", without)
    assert (found.code, "restore: the mount /var/run/other needs" in found.out) == (3, True)
    with pytest.raises(ProgramError):
        container.restore_from(without)
    (tmp_path / "elsewhere").rename(other)
    with pytest.raises(ProgramError):  # the volume is removed before, and made anew
        container.restore_from(archive, "--ignore-volumes")
    missing = [one for one in check_images(archive).watches if not one.right]
    assert [(one.watch.path, one.verdict) for one in missing] == [
        (b"/vol/row", RestoreVerdict.MISSING)
    ]
    container.restore_from(without)
    container.kill()


def _fails(container: PodmanContainer, archive: Path, root: Path | None, path: str) -> None:
    """check says that this watch alone is missing, and the restore fails."""
    report = check_images(archive, root)
    wrong = [one for one in report.watches if not one.right]
    assert [one.watch.path for one in wrong] == [os.fsencode(path)]
    assert wrong[0].verdict is RestoreVerdict.MISSING
    with pytest.raises(ProgramError):
        container.restore_from(archive)


def _changes(place: Place) -> Iterator[tuple[str, Callable[[], Callable[[], None]], bool]]:
    """The watched path, the function that hides its file, and whether check gets --root."""

    def hidden(file: Path) -> Callable[[], Callable[[], None]]:
        aside = file.with_name("renamed")

        def hide() -> Callable[[], None]:
            file.rename(aside)
            return lambda: aside.rename(file) and None

        return hide

    (layer,) = place.container.store.glob("overlay/*/diff/srv/app/settings")
    yield "/srv/app/settings", hidden(layer), True
    yield "/data/file", hidden(place.data / "file"), False
    yield "/data/file", hidden(place.data), False
