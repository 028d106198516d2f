"""Gives the files of a checkpoint: of an images dir, or of an archive.

An engine's checkpoint has its own files beside the images, one directory up. So does an archive
that was unpacked: its directory, or `checkpoint/` in it, can be named.
"""

from __future__ import annotations

import os
import re
import sys
from typing import Protocol

from irmapdb import files
from irmapdb.archive import layout
from irmapdb.archive.decompress import Allowance, unpacked
from irmapdb.archive.layout import Inside
from irmapdb.errors import FileError, ImageError
from irmapdb.model import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

__all__ = ["CheckpointFiles", "open_checkpoint"]

_INVENTORY = "inventory.img"
"""CRIU writes it last."""
_FILES = "files.img"
_CHECKPOINT = "checkpoint"
_OCI_LAYOUT = "oci-layout"
"""In each directory of an image: image-layout.md of the OCI image specification."""
_MOUNTS = re.compile(r"mountpoints-([0-9]+)\.img")
_GHOSTS = re.compile(r"ghost-file-[0-9a-f]+\.img")


class CheckpointFiles(Protocol):
    """The files of one checkpoint."""

    path: Path
    """The directory or archive that was named."""

    files_img_path: Path
    """`files.img` of the directory, or the archive."""
    most_watches: int
    """The largest number that is read."""
    most_mounts: int
    """The same, for those of all mount namespaces together."""
    in_layer: bool
    """Whether it is in a layer of an image."""

    def shown(self, name: str) -> str:
        """The name of a file for errors."""

    def files_img(self) -> bytes:
        """The open files of the tasks. FileError if there is no such image."""

    def mountpoints(self) -> Iterator[tuple[str, bytes]]:
        """`mountpoints-N.img`, name and bytes, by N."""

    def ghosts(self) -> Iterator[tuple[str, bytes]]:
        """`ghost-file-N.img`, name and first bytes."""

    def beside(self, name: str) -> bytes | None:
        """A file of the engine; None if there is none."""

    def has_inside(self, name: str) -> bool:
        """Whether there is an archive of this name: `rootfs-diff.tar`, `volumes/NAME.tar`."""

    def look_into(self, wanted: Mapping[str, Collection[bytes]]) -> dict[str, Inside]:
        """Which of the wanted names the archives inside have, by the archive's name."""

    def in_layers(self, wanted: Collection[bytes]) -> Collection[bytes]:
        """Which of the wanted names the layers of an image have."""


def open_checkpoint(path: Path) -> CheckpointFiles:
    """The checkpoint of a directory or an archive file.

    FileError if it is missing, cannot be read, or if the dump has failed; ImageError for an archive
    that is damaged or has no checkpoint.
    """
    if os.path.isdir(path):
        return _Directory(path)
    if _is_missing(path):
        message = f"{printable(path)}: No such file or directory"
        raise FileError(message, advice="name the images dir of a dump, or an archive")
    return _Archive(path)


def _is_missing(path: Path) -> bool:
    # A path that may not be looked up is not missing: the attempt to open it gives the reason.
    try:
        os.stat(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def _number(name: str) -> int:
    found = _MOUNTS.fullmatch(name)
    return int(found[1][:18]) if found else 0


class _Directory:
    most_watches = most_mounts = sys.maxsize
    in_layer = False

    def __init__(self, path: Path) -> None:
        self.path = path
        named = path / _CHECKPOINT
        unpacked_here = not os.path.exists(path / _INVENTORY) and os.path.exists(named / _INVENTORY)
        self._images = named if unpacked_here else path
        self.files_img_path = self._images / _FILES
        inventory = self._images / _INVENTORY
        if files.read_if_there(inventory, limit_bytes=files.LIMIT_BYTES) is None:
            what = f"a directory with no {_INVENTORY}, so no images of a whole dump"
            advice = "name the images dir of a dump; dump.log says how it ended"
            if os.path.exists(path / _OCI_LAYOUT):
                what = "the directory of an image of a registry"
                advice = f"pack it, and name the file: tar -C {printable(path)} -cf FILE ."
            raise FileError(f"{printable(path)}: {what}", advice=advice)

    def shown(self, name: str) -> str:
        return printable(self._images / name)

    def files_img(self) -> bytes:
        return files.read_whole(self._images / _FILES, limit_bytes=files.LIMIT_BYTES)

    def mountpoints(self) -> Iterator[tuple[str, bytes]]:
        for name in sorted(self._names(_MOUNTS), key=_number):
            yield name, files.read_whole(self._images / name, limit_bytes=files.LIMIT_BYTES)

    def ghosts(self) -> Iterator[tuple[str, bytes]]:
        for name in self._names(_GHOSTS):
            path = self._images / name
            yield name, files.read_prefix(path, size_bytes=layout.GHOST_HEAD_BYTES)

    def _names(self, pattern: re.Pattern[str]) -> Iterator[str]:
        for one in self._images.iterdir():
            if pattern.fullmatch(one.name):
                yield one.name

    def beside(self, name: str) -> bytes | None:
        found = self._place(name)
        if found is None:
            return None
        return files.read_prefix(found, size_bytes=layout.limit_of(name))

    def has_inside(self, name: str) -> bool:
        return self._place(name) is not None

    def look_into(self, wanted: Mapping[str, Collection[bytes]]) -> dict[str, Inside]:
        answers: dict[str, Inside] = {}
        allowance = Allowance()
        for name, members in wanted.items():
            found = self._place(name)
            if found is None:
                continue
            shown = printable(found)
            try:
                with files.open_regular(found) as file, unpacked(file, shown, allowance) as stream:
                    answers[name] = layout.names_inside(stream, shown, members)
            except (FileError, ImageError) as error:
                answers[name] = Inside(frozenset(), frozenset(), str(error))
        return answers

    def in_layers(self, wanted: Collection[bytes]) -> Collection[bytes]:  # noqa: ARG002 none
        return ()

    def _place(self, name: str) -> Path | None:
        for directory in (self._images, self._images.absolute().parent):
            if os.path.isfile(directory / name):
                return directory / name
        return None


class _Archive:
    most_watches = layout.LIMIT_WATCHES
    most_mounts = layout.LIMIT_MOUNTS

    def __init__(self, path: Path) -> None:
        self.path = self.files_img_path = path
        self._layout = layout.read_layout(path)
        self.in_layer = self._layout.in_layer

    def shown(self, name: str) -> str:
        return f"{printable(self.path)}: {name}"

    def files_img(self) -> bytes:
        return self._layout.images[_FILES]

    def mountpoints(self) -> Iterator[tuple[str, bytes]]:
        for name in sorted(self._layout.images, key=_number):
            if _MOUNTS.fullmatch(name):
                yield name, self._layout.images[name]

    def ghosts(self) -> Iterator[tuple[str, bytes]]:
        for name, head in self._layout.images.items():
            if _GHOSTS.fullmatch(name):
                yield name, head

    def beside(self, name: str) -> bytes | None:
        return self._layout.beside.get(name)

    def has_inside(self, name: str) -> bool:
        return name in self._layout.inside

    def look_into(self, wanted: Mapping[str, Collection[bytes]]) -> dict[str, Inside]:
        places = {self._layout.inside[name]: names for name, names in wanted.items()}
        found = layout.look_into(self.path, self._layout.small, places)
        return {
            name: found[self._layout.inside[name]]
            for name in wanted
            if self._layout.inside[name] in found
        }

    def in_layers(self, wanted: Collection[bytes]) -> Collection[bytes]:
        return layout.in_layers(self.path, wanted)
