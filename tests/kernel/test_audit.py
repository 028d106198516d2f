"""The audit beside a list of the test: the test notes each change that it makes to a file."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from irmapdb.audit import check, fix
from irmapdb.audit.findings import AuditFinding, AuditVerdict
from irmapdb.model import (
    ChangeKind,
    Event,
    StaleReason,
)
from irmapdb.store.database import Store
from tests.support.area import MountArea
from tests.support.audit_files import File, Garden, live, replayed

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def _contents(directory: Path) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in directory.iterdir()}


def _check(garden: Garden, **kwargs: object) -> dict[bytes, AuditFinding]:
    before = _contents(garden.work)
    findings = check.audit(garden.options(**kwargs)).findings
    assert _contents(garden.work) == before, "the audit wrote"
    assert [one.mapping for one in findings] == garden.mappings()
    for one in findings:
        assert (one.mapping.path, one.verdict) == (one.mapping.path, garden.truth(one.mapping))
        if one.verdict is AuditVerdict.MOVED:
            assert one.evidence.moved_to
            assert set(one.evidence.moved_to) <= garden.names_of(File.of(one.mapping.identity))
        if one.verdict in {AuditVerdict.REPLACED, AuditVerdict.REUSED}:
            there = garden.names[Path(os.fsdecode(one.mapping.path))]
            assert File.of(one.evidence.found) == there
    return {one.mapping.path: one for one in findings}


def _again_with_its_number(garden: Garden, path: Path) -> None:
    # ext4 gives the lowest free number: others are made until it is the one that came free.
    file = garden.names[path]
    garden.remove(path)
    for number in range(32):
        made = garden.make(f"filler-{number}")
        if garden.names[made].ino == file.ino:
            garden.rename(made, path)
            break
    assert garden.names[path].ino == file.ino, "ext4 did not use the number again"
    assert garden.names[path].generation != file.generation


def test_each_change_of_a_file_has_its_verdict(garden: Garden) -> None:
    names = ("stays", "moves", "linked", "replaced", "dies", "again", "swap-a", "swap-b")
    paths = {name: garden.make(name) for name in names}
    raw = {name: os.fsencode(path) for name, path in paths.items()}
    for path in paths.values():
        garden.watch(path)
    garden.step()
    assert {one.verdict for one in _check(garden).values()} == {AuditVerdict.VALID}

    garden.rename(paths["moves"], garden.top / "moved")
    garden.link(paths["linked"], garden.top / "other")
    garden.remove(paths["linked"])
    garden.make("spare")
    garden.rename(garden.top / "spare", paths["replaced"])
    garden.remove(paths["dies"])
    _again_with_its_number(garden, paths["again"])
    for old, new in (("swap-a", "x"), ("swap-b", "swap-a"), ("x", "swap-b")):
        garden.rename(garden.top / old, garden.top / new)

    found = _check(garden)
    assert {path.decode().rpartition("/")[2]: one.verdict.value for path, one in found.items()} == {
        "stays": "valid",
        "moves": "moved",
        "linked": "moved",
        "replaced": "replaced",
        "dies": "deleted",
        "again": "reused",
        "swap-a": "moved",
        "swap-b": "moved",
    }
    for name in ("moves", "dies"):
        at = found[raw[name]].evidence.changed_at.timestamp()
        assert abs(at - garden.top.stat().st_mtime) < 1e-3

    garden.watch(paths["again"])  # the new one
    garden.step(freeze=True)
    _check(garden)

    change_set = [
        (run_id, change.kind, change.path.rpartition(b"/")[2].decode(), change.reason)
        for run_id, change in garden.changes()
    ]
    assert sorted(change_set[: len(names)]) == sorted((1, "found", name, None) for name in names)
    assert sorted(change_set[len(names) :], key=lambda one: one[2]) == [
        (2, "stale", "again", StaleReason.REUSED),
        (2, "found", "again", None),
        (2, "moved", "moved", StaleReason.GONE),
        (2, "moved", "other", StaleReason.GONE),
        (2, "moved", "swap-a", StaleReason.REPLACED),
        (2, "moved", "swap-b", StaleReason.REPLACED),
    ]

    # No task watches these two any more, so no step checks them; the audit does.
    mended = fix.mend(garden.options())
    assert {(change.kind, change.path, change.reason) for change in mended.changes} == {
        (ChangeKind.STALE, raw["replaced"], StaleReason.REPLACED),
        (ChangeKind.STALE, raw["dies"], StaleReason.DELETED),
    }
    with Store.open_readonly(garden.database) as store:
        (*_, last) = store.runs()
    assert (last.id, last.event, last.outcome) == (3, Event.AUDIT_FIX, "2 stale")
    assert not any(one.is_news for one in _check(garden).values())
    assert fix.mend(garden.options()).run_id is None, "there was nothing left to do"
    assert live(garden) == replayed(garden)


@pytest.mark.alone  # another worker may mount the old device meanwhile
def test_a_remount_on_another_device(garden: Garden, area: MountArea, tmp_path: Path) -> None:
    filesystem = area.ext4("other")
    there = Garden(filesystem.mountpoint, tmp_path / "there", garden.watcher)
    path, here = there.make("file"), garden.make("file")
    there.watch(path)
    garden.watch(here)
    there.step()
    there.unpin(path)
    garden.watcher.remove(there.watches[there.names[path]])
    filesystem.remount_on_another_device()

    found = there.audit()

    gone = found[os.fsencode(path)]
    assert (gone.verdict, gone.evidence.reason) == (AuditVerdict.UNMOUNTED, StaleReason.UNMOUNTED)
    assert gone.evidence.found.kdev != gone.mapping.identity.kdev
    assert File.of(gone.evidence.found) == File.of(gone.mapping.identity)
    assert "its handle at the path" in gone.evidence.note
    assert found[os.fsencode(here)].verdict is AuditVerdict.VALID
    (change,) = fix.mend(there.options()).changes
    assert (change.kind, change.reason) == (ChangeKind.STALE, StaleReason.UNMOUNTED)


class _Chance:
    """One random change after the other, done to the files and to the truth."""

    def __init__(self, garden: Garden, seed: int) -> None:
        self.garden = garden
        self.random = random.Random(seed)

    def step(self) -> None:
        what = self.random.choice(
            ["make", "make", "rename", "rename", "over", "link", "remove", "again", "watch"]
        )
        getattr(self, what)()

    def _any(self) -> Path | None:
        names = sorted(self.garden.names)
        return self.random.choice(names) if names else None

    def _free(self) -> Path:
        while True:
            path = self.garden.top / self.random.choice("de") / self.random.choice("abcdefgh")
            path.parent.mkdir(exist_ok=True)
            if path not in self.garden.names:
                return path

    def make(self) -> None:
        if len(self.garden.names) < 12:
            self.garden.make(os.fspath(self._free().relative_to(self.garden.top)))

    def rename(self) -> None:
        if path := self._any():
            self.garden.rename(path, self._free())

    def over(self) -> None:
        old, new = self._any(), self._any()
        if old and new:
            self.garden.rename(old, new)

    def link(self) -> None:
        path = self._any()
        if path and len(self.garden.names) < 12:
            self.garden.link(path, self._free())

    def remove(self) -> None:
        if path := self._any():
            self.garden.remove(path)

    def again(self) -> None:
        if path := self._any():
            self.garden.remove(path)
            self.garden.make(os.fspath(path.relative_to(self.garden.top)))

    def watch(self) -> None:
        if path := self._any():
            self.garden.watch(path)


@pytest.mark.parametrize("seed", range(4))
def test_random_changes(garden: Garden, seed: int) -> None:
    chance = _Chance(garden, seed)
    for number in range(12):
        for _ in range(10):
            chance.step()
        if number % 4 == 3:
            fix.mend(garden.options())
        else:
            garden.step(freeze=number % 3 == 2)
        _check(garden)
        assert live(garden) == replayed(garden)
    assert {change.kind for _, change in garden.changes()} >= set(ChangeKind) - {"revived"}
