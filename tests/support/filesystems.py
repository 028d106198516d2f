"""Real filesystems on sparse loop images, overlays, bind mounts and FUSE.

Everything is a context manager that unmounts on the way out, lazily if it must. Loop devices are
set up with autoclear, so the kernel releases them with the last unmount, also if we are killed.
Nothing here skips a test: a missing program raises ProgramError (`features` checks before that).

Sources: mount(8), losetup(8), umount(8), findmnt(8), mount_namespaces(7).
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from tests.support.caches import drop_caches, mounts
from tests.support.programs import ProgramError, run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = [
    "BtrfsLayout",
    "LoopFilesystem",
    "Overlay",
    "bind_mount",
    "bindfs",
    "btrfs_layout",
    "drop_caches",
    "image_filesystem",
    "loop_filesystem",
    "mounted",
    "overlay",
    "private_mounts",
    "superblock_kdev",
    "tmpfs",
    "unmount",
    "unmount_below",
]

_MIB = 1 << 20

# The smallest size that each mkfs takes without complaint, in MiB.
_MKFS: dict[str, tuple[int, tuple[str, ...]]] = {
    "ext4": (16, ("mkfs.ext4", "-q", "-F")),
    # xfsprogs 5.19 refuses less than 300 MiB.
    "xfs": (320, ("mkfs.xfs", "-q", "-f")),
    "btrfs": (128, ("mkfs.btrfs", "-q", "-f")),
}


def unmount(mountpoint: Path) -> None:
    """Unmount; a busy one is detached now, and ends with its last user."""
    try:
        run("umount", mountpoint)
    except ProgramError:
        run("umount", "-l", mountpoint)


def unmount_below(directory: Path) -> None:
    """Lazily unmount everything mounted below `directory` or on it, the newest first."""
    top = os.fsencode(directory)
    for mountpoint in [mount.point for mount in reversed(mounts())]:
        if mountpoint == top or mountpoint.startswith(top + b"/"):
            run("umount", "-l", os.fsdecode(mountpoint))


@contextmanager
def private_mounts(directory: Path) -> Iterator[Path]:
    """A directory to mount in: nothing mounted below spreads to another mount namespace.

    Where `directory` lies on a shared mount (as systemd makes `/`) it is bound onto itself and
    made private; elsewhere it is used as it is. At the end every mount that is still below
    is unmounted.
    """
    spread = run("findmnt", "--noheadings", "--output", "PROPAGATION", "--target", directory)
    try:
        if b"shared" in spread:
            run("mount", "--bind", directory, directory)
            run("mount", "--make-private", directory)
        yield directory
    finally:
        unmount_below(directory)


@contextmanager
def mounted(source: Path | str, mountpoint: Path, fstype: str, options: str = "") -> Iterator[Path]:
    """`mount -t fstype -o options source mountpoint`; the mount point is made where needed."""
    mountpoint.mkdir(parents=True, exist_ok=True)
    run("mount", "-t", fstype, *(("-o", options) if options else ()), source, mountpoint)
    try:
        yield mountpoint
    finally:
        unmount(mountpoint)


def superblock_kdev(mountpoint: Path) -> int:
    """The kernel's number of the device mounted there (mountinfo's field 3), as findmnt says.

    With several mounts stacked on one mount point, the topmost counts.
    """
    text = run("findmnt", "--noheadings", "--output", "MAJ:MIN", "--mountpoint", mountpoint)
    major, minor = text.split()[-1].split(b":")
    return int(major) << 20 | int(minor)


@dataclass(frozen=True)
class LoopFilesystem:
    """A filesystem of its own on an image file."""

    fstype: str
    image: Path
    mountpoint: Path
    options: str

    @property
    def device(self) -> str:
        """The loop device, as in /dev/loop0: to mount a subvolume of it elsewhere."""
        source = run("findmnt", "--noheadings", "--nofsroot", "--output", "SOURCE", self.mountpoint)
        return source.split()[-1].decode()

    def remount(self) -> None:
        """Unmount and mount again: everything cached is gone, the inodes are the same."""
        run("umount", self.mountpoint)
        self._mount_on(run("losetup", "--find", "--show", self.image).decode().strip())

    def remount_on_another_device(self) -> None:
        """The same filesystem under another device number, as after a reboot or a migration."""
        # The new loop device is taken while the old one is still there, so it must be another.
        device = run("losetup", "--find", "--show", self.image).decode().strip()
        run("umount", self.mountpoint)
        self._mount_on(device)

    def _mount_on(self, device: str) -> None:
        try:
            run("mount", "-t", self.fstype, "-o", self.options, device, self.mountpoint)
        finally:
            # The device is busy with the mount, so this only sets autoclear.
            run("losetup", "--detach", device)


@contextmanager
def loop_filesystem(
    fstype: str,
    image: Path,
    mountpoint: Path,
    *,
    mkfs: Path | None = None,
    mkfs_options: Sequence[str] = (),
    options: str = "rw",
    size_mib: int | None = None,
) -> Iterator[LoopFilesystem]:
    """Make and mount an ext4, xfs or btrfs of its own on a new sparse image file.

    `mkfs` is another program than the installed one, for xfs with parent pointers
    (`mkfs_options=("-n", "parent=1")`). The image file is removed in the end.
    """
    smallest_mib, (program, *standard_options) = _MKFS[fstype]
    with image.open("xb") as file:
        file.truncate((size_mib or smallest_mib) * _MIB)
    try:
        run(mkfs or program, *standard_options, *mkfs_options, image)
        with mounted(image, mountpoint, fstype, f"loop,{options}"):
            yield LoopFilesystem(fstype, image, mountpoint, options)
    finally:
        image.unlink()


@contextmanager
def image_filesystem(
    fstype: str, content: Path, image: Path, mountpoint: Path
) -> Iterator[LoopFilesystem]:
    """A read-only squashfs or erofs with the files below the directory `content`."""
    if fstype == "squashfs":
        run("mksquashfs", content, image, "-quiet", "-no-progress", "-processors", "1")
    else:
        run(f"mkfs.{fstype}", image, content)
    try:
        with mounted(image, mountpoint, fstype, "loop,ro"):
            yield LoopFilesystem(fstype, image, mountpoint, "ro")
    finally:
        image.unlink()


@contextmanager
def tmpfs(mountpoint: Path, *, size_mib: int = 16) -> Iterator[Path]:
    """A tmpfs of its own."""
    with mounted("tmpfs", mountpoint, "tmpfs", f"size={size_mib}m"):
        yield mountpoint


@contextmanager
def bind_mount(source: Path, target: Path) -> Iterator[Path]:
    """`source` (a directory or a file) bound over `target`, which must be there."""
    run("mount", "--bind", source, target)
    try:
        yield target
    finally:
        unmount(target)


@dataclass(frozen=True)
class Overlay:
    """A mounted overlay and its layers."""

    mountpoint: Path
    lower: Path | str
    """Or several, the topmost first: `one:other`."""
    upper: Path
    work: Path
    options: str

    def mount(self) -> None:
        """Mount it; also again, after something changed in the layers."""
        layers = f"lowerdir={self.lower},upperdir={self.upper},workdir={self.work}"
        extra = f",{self.options}" if self.options else ""
        run("mount", "-t", "overlay", "-o", layers + extra, "overlay", self.mountpoint)


@contextmanager
def overlay(
    mountpoint: Path, *, lower: Path | str, upper_base: Path, options: str = ""
) -> Iterator[Overlay]:
    """An overlay of `lower` and of `upper` and `work`, both made in `upper_base`.

    Layers on one filesystem when both lie on one, on two when they do not. `options` are added,
    as in "index=on,nfs_export=on" or "xino=on".
    """
    layers = Overlay(mountpoint, lower, upper_base / "upper", upper_base / "work", options)
    for directory in (layers.mountpoint, layers.upper, layers.work):
        directory.mkdir(parents=True, exist_ok=True)
    layers.mount()
    try:
        yield layers
    finally:
        unmount(mountpoint)


@contextmanager
def bindfs(source: Path, mountpoint: Path) -> Iterator[Path]:
    """A real FUSE filesystem, served by a process: `source` mirrored by the program bindfs."""
    mountpoint.mkdir(parents=True, exist_ok=True)
    run("bindfs", source, mountpoint)
    try:
        yield mountpoint
    finally:
        # bindfs itself ends with its last mount.
        unmount(mountpoint)


class BtrfsLayout(NamedTuple):
    """Places on one btrfs; each of the directories holds `file` and `dir/file`."""

    top: Path
    sub: Path
    """A subvolume."""
    nested: Path
    """A subvolume within `sub`."""
    snapshot: Path
    """A snapshot of `sub`: its files have the inode numbers of those in `sub`."""


def btrfs_layout(top: Path) -> BtrfsLayout:
    """Make subvolumes, a nested one and a snapshot on the btrfs mounted at `top`."""
    layout = BtrfsLayout(top, top / "sub", top / "sub" / "nested", top / "snapshot")
    for subvolume in (layout.sub, layout.nested):
        run("btrfs", "subvolume", "create", subvolume)
    for directory in (layout.top, layout.sub, layout.nested):
        (directory / "dir").mkdir()
        for file in (directory / "file", directory / "dir" / "file"):
            file.write_bytes(b"content")
    run("btrfs", "subvolume", "snapshot", layout.sub, layout.snapshot)
    # The place of a subvolume below the one that was snapshotted is an empty directory there.
    return layout
