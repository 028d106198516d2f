"""A directory to mount in, for one test: filesystems by name, taken down in reverse order.

A filesystem first checks the features that it needs (`features.require`), so a test only names the
filesystem.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple, Self

from tests.support import filesystems
from tests.support.features import require, require_filesystem, require_program, require_root
from tests.support.packages import RigError, mkfs_xfs_wrapper
from tests.support.programs import run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.support.filesystems import LoopFilesystem, Overlay

__all__ = ["PLACES", "MountArea", "Place"]

PLACES = (
    "ext4",
    "xfs",
    "xfs-parents",
    "btrfs",
    "btrfs-subvolume",
    "btrfs-subvol-mount",
    "tmpfs",
    "overlay-lower",
    "overlay-upper",
    "overlay-two-filesystems",
    "overlay-nfs-export",
    "overlay-two-subvolumes",
    "overlay-xino",
    "squashfs",
    "erofs",
    "fuse",
    "bind",
)
"""The kinds of MountArea.place()."""


_LINKS_PART = {"overlay-lower", "overlay-two-filesystems", "overlay-xino"}
"""Where a file that has several names in a lower layer is another one by each."""


class Place(NamedTuple):
    """A directory on a filesystem of one kind, with `file`, `dir/file` and `dir/hard` (a link)."""

    kind: str
    mountpoint: Path
    directory: Path
    writable: bool

    @property
    def linked(self) -> Path:
        """The first name of `dir/hard`: `dir/file`, unless links are inodes of their own there."""
        return self.directory / "dir" / ("linked" if self.kind in _LINKS_PART else "file")


def _fill(directory: Path, linked: str = "file") -> None:
    (directory / "dir").mkdir(parents=True, exist_ok=True)
    for file in (directory / "file", directory / "dir" / "file", directory / "dir" / linked):
        file.write_bytes(b"content")
    (directory / "dir" / "hard").hardlink_to(directory / "dir" / linked)


class MountArea:
    """The end of the area unmounts everything that these methods have mounted."""

    def __init__(self, path: Path) -> None:
        require_root()
        self._stack = ExitStack()
        self.path = self._stack.enter_context(filesystems.private_mounts(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _loop(
        self,
        fstype: str,
        name: str,
        *,
        mkfs: Path | None = None,
        mkfs_options: Sequence[str] = (),
        options: str = "rw",
        size_mib: int | None = None,
    ) -> LoopFilesystem:
        require_filesystem(fstype)
        return self._stack.enter_context(
            filesystems.loop_filesystem(
                fstype,
                self.path / f"{name}.image",
                self.path / name,
                mkfs=mkfs,
                mkfs_options=mkfs_options,
                options=options,
                size_mib=size_mib,
            )
        )

    def ext4(
        self, name: str = "ext4", *, options: str = "rw", size_mib: int | None = None
    ) -> LoopFilesystem:
        require_program("mkfs.ext4", package="e2fsprogs")
        return self._loop("ext4", name, options=options, size_mib=size_mib)

    def xfs(self, name: str = "xfs", *, options: str = "rw") -> LoopFilesystem:
        require_program("mkfs.xfs", package="xfsprogs")
        return self._loop("xfs", name, options=options)

    def xfs_with_parent_pointers(self, name: str = "xfs-parents") -> LoopFilesystem:
        try:
            mkfs = mkfs_xfs_wrapper()
        except RigError as error:
            require(condition=False, what=f"xfsprogs 6.10 or newer: {error}")
            raise
        return self._loop("xfs", name, mkfs=mkfs, mkfs_options=("-n", "parent=1"))

    def btrfs(self, name: str = "btrfs", *, options: str = "rw") -> LoopFilesystem:
        require_program("mkfs.btrfs", package="btrfs-progs")
        return self._loop("btrfs", name, options=options)

    def tmpfs(self, name: str = "tmpfs") -> Path:
        return self._stack.enter_context(filesystems.tmpfs(self.path / name))

    def overlay(
        self, name: str = "overlay", *, lower: Path | str, upper_base: Path, options: str = ""
    ) -> Overlay:
        """See filesystems.overlay; `lower` is to be filled before."""
        require_filesystem("overlay")
        return self._stack.enter_context(
            filesystems.overlay(
                self.path / name, lower=lower, upper_base=upper_base, options=options
            )
        )

    def squashfs(self, content: Path, name: str = "squashfs") -> LoopFilesystem:
        require_program("mksquashfs", package="squashfs-tools")
        return self._image("squashfs", content, name)

    def erofs(self, content: Path, name: str = "erofs") -> LoopFilesystem:
        require_program("mkfs.erofs", package="erofs-utils")
        return self._image("erofs", content, name)

    def _image(self, fstype: str, content: Path, name: str) -> LoopFilesystem:
        require_filesystem(fstype)
        return self._stack.enter_context(
            filesystems.image_filesystem(
                fstype, content, self.path / f"{name}.image", self.path / name
            )
        )

    def fuse(self, source: Path, name: str = "fuse") -> Path:
        """`source` through a FUSE filesystem (bindfs)."""
        require_filesystem("fuse")
        require_program("bindfs")
        return self._stack.enter_context(filesystems.bindfs(source, self.path / name))

    def bind(self, source: Path, target: Path) -> Path:
        """`source` bound over `target`, which must be there."""
        return self._stack.enter_context(filesystems.bind_mount(source, target))

    def mount(self, source: Path | str, name: str, fstype: str, options: str = "") -> Path:
        """Anything else, as in mount(fs.device, "sub", "btrfs", "subvol=sub")."""
        return self._stack.enter_context(
            filesystems.mounted(source, self.path / name, fstype, options)
        )

    def place(self, kind: str) -> Place:
        """A filled directory on a filesystem of a `kind` of PLACES, made for this call."""
        family = kind.partition("-")[0]
        make = {"btrfs": self._btrfs_place, "overlay": self._overlay_place}.get(family)
        if make is not None:
            return make(kind)
        if kind in {"squashfs", "erofs"}:
            content = self.path / "content"
            _fill(content)
            made = self.squashfs(content) if kind == "squashfs" else self.erofs(content)
            return Place(kind, made.mountpoint, made.mountpoint, writable=False)
        directory = self._plain_directory(kind)
        if kind not in {"fuse", "bind"}:
            _fill(directory)
        return Place(kind, directory, directory, writable=True)

    def _plain_directory(self, kind: str) -> Path:
        if kind == "ext4":
            return self.ext4().mountpoint
        if kind == "xfs":
            return self.xfs().mountpoint
        if kind == "xfs-parents":
            return self.xfs_with_parent_pointers().mountpoint
        if kind == "tmpfs":
            return self.tmpfs()
        source = self.path / "content"
        _fill(source)
        if kind == "fuse":
            return self.fuse(source)
        if kind == "bind":
            target = self.path / "bound"
            target.mkdir()
            return self.bind(source, target)
        message = f"{kind} is none of {PLACES}"
        raise ValueError(message)

    def _btrfs_place(self, kind: str) -> Place:
        filesystem = self.btrfs()
        top = directory = filesystem.mountpoint
        if kind != "btrfs":
            directory = top / "sub"
            run("btrfs", "subvolume", "create", directory)
        _fill(directory)
        if kind == "btrfs-subvol-mount":
            top = directory = self.mount(filesystem.device, "subvol", "btrfs", "subvol=sub")
        return Place(kind, top, directory, writable=True)

    def _overlay_place(self, kind: str) -> Place:
        # The layers get a filesystem of their own: the directory of a test may itself be on an
        # overlay, which takes no upper layer.
        if kind == "overlay-two-subvolumes":
            return self._two_subvolumes(kind)
        base = self.ext4("layers").mountpoint
        lower = base / "lower"
        if kind == "overlay-two-filesystems":
            lower = self.ext4("layers-2").mountpoint / "lower"
        if kind == "overlay-upper":
            lower.mkdir()
        else:
            _fill(lower, "linked" if kind in _LINKS_PART else "file")
        options = {"overlay-nfs-export": "index=on,nfs_export=on", "overlay-xino": "xino=on"}
        made = self.overlay(lower=lower, upper_base=base, options=options.get(kind, ""))
        if kind == "overlay-upper":
            _fill(made.mountpoint)
        return Place(kind, made.mountpoint, made.mountpoint, writable=True)

    def _two_subvolumes(self, kind: str) -> Place:
        # Of one btrfs: they count their inodes alike, so `dir` and `other` have one number.
        base = self.btrfs("layers").mountpoint
        layers = [base / "one", base / "other"]
        for layer in layers:
            run("btrfs", "subvolume", "create", layer)
        _fill(layers[0])
        (layers[1] / "other").mkdir()
        made = self.overlay(
            lower=f"{layers[0]}:{layers[1]}",
            upper_base=base,
            options="index=on,nfs_export=on",
        )
        return Place(kind, made.mountpoint, made.mountpoint, writable=True)
