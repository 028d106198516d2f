"""The entries that CRIU gets, and their order: against a real root."""

from __future__ import annotations

import os

import pytest

from irmapdb.checkpoint import criu_cache
from irmapdb.config import Config
from irmapdb.kernel.proof import identify
from irmapdb.kernel.root import Root, open_root
from irmapdb.model import FileHandle, Identity, Resolved, Source
from irmapdb.resolve.engine import Resolution
from tests.support.names import deep_file


@pytest.fixture
def root():
    with open_root(os.getpid()) as opened:
        opened.adopt(Config(skip_filesystems=frozenset()))  # nothing may block
        yield opened


def _outcome(*answers):
    return Resolution(
        resolved={
            identity: Resolved(identity, paths[0], Source.SCAN, tuple(paths[1:]))
            for identity, *paths in answers
        }
    )


def _as_criu_finds(entries):
    """The first path of each inode in the order in which CRIU looks: criu/irmap.c."""
    return {entry.key: entry.path for entry in entries}


def test_best_name_is_last_and_the_most_watched_are_behind_all(root):
    kdev = next(mount.kdev for mount in root.mounts.all if mount.fstype == "proc")
    seldom, often, other = (Identity(kdev, ino, None) for ino in (1, 2, 3))
    outcome = _outcome(
        (often, b"/often", b"/link", b"/other"), (seldom, b"/seldom", b"/link-2"), (other, b"/o")
    )
    entries = criu_cache.cache_entries(outcome, [often, seldom, often], root)
    assert [entry.path for entry in entries] == [
        b"/other", b"/link", b"/link-2", b"/seldom", b"/often",
    ]  # fmt: skip
    assert _as_criu_finds(entries) == {seldom.key: b"/seldom", often.key: b"/often"}


def test_paths_that_only_the_cache_gives_are_behind_those_of_handles(root, tmp_path):
    file = tmp_path / "file"
    file.touch()
    by_handle = identify(root, os.fsencode(file))
    by_cache = identify(root, b"/proc/version")
    outcome = _outcome((by_handle, os.fsencode(file)), (by_cache, b"/proc/version"))
    watched = [by_cache, by_handle, by_handle]
    assert [entry.path for entry in criu_cache.cache_entries(outcome, watched, root)] == [
        os.fsencode(file),
        b"/proc/version",
    ]


def test_two_inodes_of_one_number_get_no_entry(root):
    kdev = next(mount.kdev for mount in root.mounts.all if mount.fstype == "proc")
    one, two = (Identity(kdev, 5, FileHandle(1, handle)) for handle in (b"1", b"2"))
    single = Identity(kdev, 6, FileHandle(1, b"3"))
    outcome = _outcome((one, b"/one"), (single, b"/single"))
    # The other has no path: its watch would get the one of its namesake.
    entries = criu_cache.cache_entries(outcome, [one, two, single], root)
    assert _as_criu_finds(entries) == {single.key: b"/single"}


def test_on_an_overlay_a_number_alone_gets_no_entry(area):
    """It may be another layer's; and CRIU cannot read a watch without a handle."""
    place = area.place("overlay-lower")
    path = os.fsencode(place.directory / "file")
    with open_root(os.getpid()) as root:
        full = identify(root, path)
        assert full.handle is not None
        for identity, expected in ((full, {full.key: path}), (full._replace(handle=None), {})):
            entries = criu_cache.cache_entries(_outcome((identity, path)), [identity], root)
            assert _as_criu_finds(entries) == expected


def test_names_that_criu_cannot_look_up(root, tmp_path):
    outcome = _outcome((identify(root, b"/"), b"/"))
    criu_cache.spell_root(outcome)
    criu_cache.spell_root(outcome)
    (answer,) = outcome.resolved.values()
    assert (answer.path, answer.other_paths) == (b"/", (b"/.",))
    entries = criu_cache.cache_entries(outcome, [answer.identity], root)
    # None on btrfs, where no path has the device's number.
    assert {entry.path for entry in entries} <= {b"/."}
    for length, fits in ((3800, True), (4300, False)):
        top = tmp_path / str(length)
        top.mkdir()
        path = deep_file(top, length=length)
        identity = identify(root, path)
        found = criu_cache.cache_entries(_outcome((identity, path)), [identity], root)
        assert bool(found) is fits


def test_a_path_whose_lookup_may_block_gets_no_entry(root, monkeypatch):
    """irmapdb would have to ask a server for the numbers of an entry."""
    monkeypatch.setattr(criu_cache, "has_the_numbers", lambda *_: pytest.fail("asked"))
    nowhere = Identity(0xFFF << 20, 1, FileHandle(1, b"x"))  # so its type is not known
    outcome = _outcome((nowhere, b"/srv/file"))
    monkeypatch.setattr(Root, "may_block", lambda *_: True)
    assert criu_cache.cache_entries(outcome, [nowhere], root) == []
