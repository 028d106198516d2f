"""The tree that is watched and scanned: built once, kept for the next run.

A file of it: DIR/10000x1000000/000/d00000/f0000.
"""

from __future__ import annotations

import itertools
import os
import shutil
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.errors import BenchError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Tree", "prepare"]

_DIRECTORIES_A_GROUP = 100
_BYTES_A_FILE = 1024  # an inode and its name, on filesystems that make inodes as they go
_BYTES_A_DIRECTORY = 8192


@dataclass(frozen=True, slots=True)
class Tree:
    """A finished tree. Every directory has the same number of files, all empty."""

    top: Path
    directories: int
    files: int

    @property
    def files_a_directory(self) -> int:
        return self.files // self.directories

    @property
    def entries(self) -> int:
        """The number of entries of the whole tree."""
        return self.files + self.directories + _groups(self.directories)

    def path(self, number: int) -> bytes:
        """The absolute path of a file, counted from 0."""
        directory, file = divmod(number, self.files_a_directory)
        name = f"{_directory_name(directory)}/f{file:04d}"
        return os.fsencode(self.top / name)

    def spread(self, count: int) -> list[bytes]:
        """Returns `count` files, evenly from the whole tree, not all first in their directories."""
        width = self.files // count
        return [
            self.path(index * self.files // count + index * 7919 % width) for index in range(count)
        ]

    def shared(self, count: int) -> list[bytes]:
        """Returns `count` files: all those of some directories, evenly from the whole tree."""
        width = self.files_a_directory
        wanted = -(-count // width)
        every = self.directories // wanted
        numbers = (
            (index * every + every // 2) * width + file
            for index in range(wanted)
            for file in range(width)
        )
        return [self.path(number) for number in itertools.islice(numbers, count)]


def _groups(directories: int) -> int:
    return -(-directories // _DIRECTORIES_A_GROUP)


def _directory_name(number: int) -> str:
    return f"{number // _DIRECTORIES_A_GROUP:03d}/d{number:05d}"


def prepare(
    place: Path, directories: int, files: int, progress: Callable[[int], None] = lambda _: None
) -> Tree:
    """The tree below `place`, built where it is not there yet.

    It gets its name when it is complete. `progress` is called with the number of files so far.
    """
    tree = Tree(place / f"{directories}x{files}", directories, files)
    if tree.top.is_dir():
        return tree
    part = tree.top.with_suffix(".part")
    if part.exists():
        shutil.rmtree(part)
    _check_room(place, tree)
    _build(part, tree, progress)
    part.rename(tree.top)
    return tree


def _check_room(place: Path, tree: Tree) -> None:
    room = os.statvfs(place)
    inodes = tree.entries
    if room.f_files and room.f_favail < inodes:  # btrfs has no count of inodes: 0
        message = f"{place}: {room.f_favail:,} free inodes, the tree needs {inodes:,}"
        raise BenchError(message, advice="name another place with --dir, or a smaller tree")
    needed = tree.files * _BYTES_A_FILE + tree.directories * _BYTES_A_DIRECTORY
    free = room.f_bavail * room.f_frsize
    if free < needed:
        message = f"{place}: {free:,} bytes free, the tree may need {needed:,}"
        raise BenchError(message, advice="name another place with --dir, or a smaller tree")


def _build(top: Path, tree: Tree, progress: Callable[[int], None]) -> None:
    top.mkdir()
    for group in range(_groups(tree.directories)):
        (top / f"{group:03d}").mkdir()
    names = [f"f{file:04d}" for file in range(tree.files_a_directory)]
    mode = stat.S_IFREG | 0o644
    for number in range(tree.directories):
        directory = top / _directory_name(number)
        directory.mkdir()
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for name in names:
                os.mknod(name, mode, dir_fd=fd)
        finally:
            os.close(fd)
        progress((number + 1) * tree.files_a_directory)
