"""The walk of an upper layer: no content of the layer makes it endless."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from irmapdb.model import FileHandle, Identity
from irmapdb.resolve.upper_layer import UpperLayer, read_upper_layer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WANTED = Identity(1, 2, FileHandle(0xF8, bytes(40)))


def read(top: Path, over: Callable[[], bool] = lambda: False) -> UpperLayer:
    fd = os.open(top, os.O_PATH)
    try:
        return read_upper_layer(fd, [WANTED], user_attributes=True, over=over)
    finally:
        os.close(fd)


def rename(directory: Path, old: bytes) -> None:
    try:
        os.setxattr(directory, "user.overlay.redirect", old)
    except OSError as error:
        pytest.skip(f"no user attributes here: {error}")


def test_the_files_below_a_renamed_directory_take_no_memory(tmp_path: Path) -> None:
    below = tmp_path / "new"
    for number in range(20):
        (below / f"d{number}" / "e").mkdir(parents=True)
    rename(below, b"old")
    found = read(tmp_path)
    assert found.redirects == [(b"/old", b"/new")]
    assert list(found.paths_of(WANTED, [b"/layer/old/d3/e/file"])) == [b"/new/d3/e/file"]


def test_a_renamed_directory_below_a_renamed_one(tmp_path: Path) -> None:
    inner = tmp_path / "new" / "inner"
    inner.mkdir(parents=True)
    rename(tmp_path / "new", b"old")
    rename(inner, b"before")
    found = read(tmp_path)
    assert set(found.redirects) == {(b"/old", b"/new"), (b"/old/before", b"/new/inner")}
    first, *_ = found.paths_of(WANTED, [b"/layer/old/before/file"])
    assert first == b"/new/inner/file"


def test_it_ends_within_a_directory_when_the_time_is_up(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"d{number}").mkdir()
        rename(tmp_path / f"d{number}", b"old%d" % number)
    asked = 0

    def over() -> bool:
        nonlocal asked
        asked += 1
        return asked > 5

    assert 0 < len(read(tmp_path, over).redirects) < 20
