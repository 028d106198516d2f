"""The mounts and the caches of one process that runs tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from irmapdb.kernel import syscalls
from tests.support.caches import drop_caches, mounts
from tests.support.features import require_root

pytestmark = pytest.mark.kernel


@pytest.fixture(autouse=True)
def _root():
    require_root()


def _name(top: Path, file: Path, *, dropped: bool) -> str:
    """The name that the kernel's caches have of a file on the filesystem mounted at `top`."""
    handle, _ = syscalls.name_to_handle_at(-100, os.fsencode(file), 0)
    if dropped:
        drop_caches()
    mount_fd = os.open(top, os.O_RDONLY)
    fd = syscalls.open_by_handle_at(mount_fd, handle, os.O_PATH)
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
        os.close(mount_fd)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_names_are_dropped(kind, area):
    place = area.place(kind)
    file = place.directory / "file"
    assert _name(place.mountpoint, file, dropped=False) == str(file)
    assert _name(place.mountpoint, file, dropped=True) == "/"


def test_names_of_the_disk_are_dropped(tmp_path, tmp_path_factory):
    file = tmp_path / "file"
    file.touch()
    disk = tmp_path_factory.getbasetemp()
    assert disk.is_mount()
    assert _name(disk, file, dropped=False) == str(file)
    assert _name(disk, file, dropped=True) == "/"


def test_a_mount_of_this_process_is_in_no_other_namespace(area):
    top = os.fsencode(area.tmpfs())
    assert top in {mount.point for mount in mounts()}
    theirs = Path(f"/proc/{os.getppid()}/mountinfo").read_bytes()
    assert top not in theirs


def test_a_process_without_a_namespace_of_its_own_drops_nothing():
    program = "from tests.support.caches import drop_caches; drop_caches()"
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "no mount namespace of its own" in done.stderr
