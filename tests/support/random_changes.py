"""Random changes to a real tree, one at a time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.programs import ProgramError, run

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

__all__ = ["Gardener", "SubvolumeGardener"]

_NAMES = 40


class Gardener:
    """Makes, links, renames and removes files and directories below `top`."""

    def __init__(self, top: Path, chance: random.Random) -> None:
        self.top = top
        self.chance = chance
        self.done = 0
        self.acts: list[Callable[[], object]] = [self._make, self._link, self._rename] * 3
        self.acts.append(self._remove)

    def change(self) -> None:
        """Try one; not every one can be done."""
        try:
            self.chance.choice(self.acts)()
            self.done += 1
        except (OSError, IndexError, ProgramError):
            return  # EXDEV, ENOTEMPTY, EEXIST, or nothing there to do it to: nothing happened

    def _pick(self, *, directory: bool) -> Path:
        found = [self.top] if directory else []
        for path, directories, files in os.walk(self.top):
            found += [Path(path, name) for name in (directories if directory else files)]
        return self.chance.choice(found)

    def _new(self) -> Path:
        return self._pick(directory=True) / f"n{self.chance.randrange(_NAMES)}"

    def _make(self) -> None:
        place = self._new()
        if self.chance.random() < 0.4:
            place.mkdir()
        else:
            place.touch(exist_ok=False)

    def _link(self) -> None:
        self._new().hardlink_to(self._pick(directory=False))

    def _rename(self) -> None:
        self._pick(directory=self.chance.random() < 0.4).rename(self._new())

    def _remove(self) -> None:
        self._pick(directory=False).unlink()


class SubvolumeGardener(Gardener):
    """The same, and subvolumes and snapshots of a btrfs."""

    def __init__(self, top: Path, chance: random.Random) -> None:
        super().__init__(top, chance)
        self.acts += [self._subvolume, self._snapshot, self._delete]

    def _subvolumes(self) -> list[Path]:
        return [path for path in self.top.rglob("*") if path.is_dir() and path.stat().st_ino == 256]

    def _subvolume(self) -> None:
        run("btrfs", "subvolume", "create", self._new())

    def _snapshot(self) -> None:
        place = self._new()
        if not place.exists():  # else it would be made below that
            run("btrfs", "subvolume", "snapshot", self.chance.choice(self._subvolumes()), place)

    def _delete(self) -> None:
        run("btrfs", "subvolume", "delete", self.chance.choice(self._subvolumes()))
