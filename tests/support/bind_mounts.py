"""A file and a directory bound over others, whose last names are then removed."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.area import MountArea


class Bound(NamedTuple):
    """An ext4 at `top`, of which `conf/hosts` is seen at `file`, and `dir` at `directory`."""

    top: Path
    file: Path
    directory: Path

    def remove(self) -> None:
        """Replace the one and remove the other; both stay where they are bound."""
        (self.top / "conf" / "hosts.new").rename(self.top / "conf" / "hosts")
        (self.top / "dir").rmdir()


@pytest.fixture
def bound(area: MountArea) -> Bound:
    """The mounts alone: nothing is removed yet."""
    made = Bound(area.ext4().mountpoint, area.path / "hosts", area.path / "bdir")
    for directory in (made.top / "conf", made.top / "dir", made.directory):
        directory.mkdir()
    for file in ("hosts", "hosts.new"):
        (made.top / "conf" / file).write_text(file)
    made.file.touch()
    area.bind(made.top / "conf" / "hosts", made.file)
    area.bind(made.top / "dir", made.directory)
    return made
