"""The descriptors of mounts: opened before the freeze, in which no open may block."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from irmapdb.checkpoint import steps
from irmapdb.checkpoint.steps import FreezeOptions, StepOptions
from irmapdb.kernel.own_freezer import stop_tree
from irmapdb.model import Source
from irmapdb.resolve.mount_fds import MountFds
from tests.support.filesystems import drop_caches, superblock_kdev
from tests.support.kernel_paths import mount_id, open_descriptors
from tests.support.programs import ProgramError, run
from tests.support.stepping import NO_HINTS, new_work_dir

if TYPE_CHECKING:
    from pathlib import Path

    from irmapdb.kernel.root import Root
    from tests.support.area import MountArea

# A listener that the kernel asks before each open on a filesystem; it watches files there.
_LISTENER = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def done(result):
    assert result >= 0, os.strerror(ctypes.get_errno())
    return result
top, *files = map(os.fsencode, sys.argv[1:])
inotify = done(libc.inotify_init1(0))
for file in files:
    done(libc.inotify_add_watch(inotify, file, 0x2))
CONTENT, MARK_FILESYSTEM, OPEN_PERM_ONDIR, ALLOW = 0x4, 0x101, 0x40010000, 1
group = done(libc.fanotify_init(CONTENT, os.O_RDONLY))
done(libc.fanotify_mark(group, MARK_FILESYSTEM, ctypes.c_uint64(OPEN_PERM_ONDIR), -100, top))
print("ready", flush=True)
while True:
    events = os.read(group, 4096)
    while events:
        length, *_, fd, _ = struct.unpack_from("=IBBHQii", events)
        os.write(group, struct.pack("=iI", fd, ALLOW))
        os.close(fd)
        events = events[length:]
"""


@pytest.mark.parametrize(
    ("kind", "cold", "source"),
    [
        ("ext4", False, Source.HANDLE),
        ("ext4", True, Source.SCAN),  # after the freeze
        ("xfs-parents", True, Source.XFS),
        ("btrfs", True, Source.BTRFS),
        ("btrfs-subvolume", True, Source.BTRFS),
    ],
)
def test_a_frozen_listener_that_is_asked_before_each_open(
    area: MountArea,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    cold: bool,  # noqa: FBT001 a parameter of the test
    source: Source,
) -> None:
    place = area.place(kind)
    file, moved = place.directory / "file", place.directory / "dir" / "moved"
    before = open_descriptors()
    frozen = partial(stop_tree.frozen, hold_s=30)

    def move_then_stop(*args: object, **kwargs: object) -> Any:
        file.rename(moved)
        if cold:
            run("sync")
            drop_caches()
        return frozen(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(stop_tree, "frozen", move_then_stop)
    command = [sys.executable, "-c", _LISTENER, place.mountpoint, file]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as listener:
        try:
            assert listener.stdout is not None
            assert listener.stdout.readline() == b"ready\n"
            options = StepOptions(listener.pid, images_dir=new_work_dir(tmp_path), config=NO_HINTS)
            report = steps.dump(options, FreezeOptions())
        finally:
            listener.kill()
    assert [row.path for row in report.watches] == [os.fsencode(moved)]
    assert report.stats.sources == {str(source): 1}
    assert report.stats.frozen_us < 20_000_000, "the freeze ended because its time was over"
    assert open_descriptors() == before


def test_the_kept_descriptor_is_of_the_mount_that_a_lookup_meets(
    area: MountArea, root: Root
) -> None:
    place = area.ext4().mountpoint
    root.refresh()
    mount_fds = MountFds(root)
    path = os.fsencode(place)
    before = open_descriptors()
    mount_fds.keep([superblock_kdev(place)], 128)
    with mount_fds.only_kept():
        fd = mount_fds.open(path)
        assert (os.fstat(fd).st_ino, _mount_of(fd)) == (os.stat(place).st_ino, mount_id(place))
        os.close(fd)
        # The same directory on another mount, over the one that is kept, is another one.
        run("mount", "--bind", place, place)
        with pytest.raises(BlockingIOError) as refused:
            mount_fds.open(path)
        assert refused.value.errno == errno.EAGAIN
    other = mount_fds.open(path)
    assert _mount_of(other) == mount_id(place)
    os.close(other)
    run("umount", place)
    with mount_fds.only_kept():
        os.close(mount_fds.open(path))
    with pytest.raises(ProgramError, match="busy"):
        run("umount", place)
    mount_fds.close()
    assert open_descriptors() == before
    with mount_fds.only_kept(), pytest.raises(BlockingIOError):
        mount_fds.open(path)


def test_the_number_of_kept_descriptors_is_bounded(area: MountArea, root: Root) -> None:
    place = area.ext4().mountpoint
    # Mounts of single files show the least of it, and come first by the length of their roots.
    for number in range(12):
        (place / f"{number}").touch()
        (area.path / f"file{number}").touch()
        area.bind(place / f"{number}", area.path / f"file{number}")
        (place / "a long name" / f"{number}").mkdir(parents=True)
        (area.path / f"directory{number}").mkdir()
        area.bind(place / "a long name" / f"{number}", area.path / f"directory{number}")
    root.refresh()
    kdev = superblock_kdev(area.path / "directory0")
    before = open_descriptors()
    mount_fds = MountFds(root)
    assert mount_fds.keep([kdev], 2) == 2
    mount_fds.close()
    assert mount_fds.keep([kdev], 128) == 8
    with mount_fds.only_kept():
        os.close(mount_fds.open(os.fsencode(area.path / "directory0")))
    mount_fds.close()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.close(free := os.dup(0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 4, limits[1]))
    try:
        assert 0 < mount_fds.keep([kdev], 128) < 8
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    mount_fds.close()
    assert open_descriptors() == before


def _mount_of(fd: int) -> int:
    with open(f"/proc/self/fdinfo/{fd}") as fdinfo:
        words = fdinfo.read().split()
    return int(words[words.index("mnt_id:") + 1])
