"""Archives that podman exports: check beside `podman container restore --import`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from irmapdb.archive.dumped import read_dumped
from irmapdb.archive.origins import OriginKind
from irmapdb.criu.check.restore import RestoreVerdict, check_images
from tests.support.cli import irmapdb
from tests.support.features import require_program
from tests.support.hook import installed_for_runc
from tests.support.notify import IN_OPEN
from tests.support.podman import PodmanContainer
from tests.support.programs import SYSTEM_PATH, ProgramError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.watcher import Watched


class Place(NamedTuple):
    """A container with a file from each source, and the files of the host."""

    container: PodmanContainer
    data: Path


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
    path = os.pathsep.join((str(rig), SYSTEM_PATH))
    options = ["-v", f"{data}:/data", "-v", "vol:/vol", "--tmpfs", "/scratch"]
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
