"""Each cell of CRIU's table once more, with the hook: dumped, restored, and events delivered."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from irmapdb.checkpoint import steps
from tests.criu.test_without_hook import FAILS, PATH, TABLE
from tests.support.filesystems import drop_caches
from tests.support.hook import hook_program
from tests.support.notify import IN_OPEN

PLACES = {f"{row.place.strip('/')}:{row.name}": row for row in TABLE}

# CRIU's verdicts with the hook: warm, after dentries were dropped, and so with --force-irmap.
# Where handles can be opened, proving a path has put its name back into the kernel's cache.
HELPED = dict.fromkeys(PLACES, (PATH, PATH, PATH))
# A cold name below /proc/sys gets a new inode: the watched one has no path any more.
HELPED["proc:sys/kernel/hostname"] = (PATH, FAILS, FAILS)

# Without index=on an overlay makes a new inode, with the old numbers and handle, at each lookup of
# a lower file with several links (ovl_get_inode() of fs/overlayfs/inode.c): such a watch loses its
# events with its dentry, also after a restore. So take the one that has a single link.
UNLINKED = {"overlay-lower:dir/file": "file"}


@pytest.fixture
def hook(tmp_path):
    return hook_program(tmp_path)


def _touch(path: Path) -> None:
    if path.is_dir():
        os.listdir(path)
    else:
        path.read_bytes()


@pytest.mark.parametrize("place", PLACES)
def test_with_the_hook_the_restored_watch_reports_events(place, area, criu, target, hook, tmp_path):
    row = PLACES[place]
    mountpoint = Path(row.place)
    if not mountpoint.is_absolute():
        mountpoint = area.place(row.place).mountpoint
    path = mountpoint / UNLINKED.get(place, row.name)
    watched = target.add_inotify(path, IN_OPEN)

    verdicts = []
    # A work dir for each: nothing is known from before.
    for name, cold, forced in (("warm", 0, 0), ("dropped", 1, 0), ("forced", 1, 1)):
        if cold:
            drop_caches(mountpoint)
        done = criu.dump(
            target.pid,
            tmp_path / name,
            leave_running=False,
            force_irmap=bool(forced),
            action_script=hook,
        )
        verdicts.append(criu.verdict(done, watched))
        if done.ok:
            restored = criu.restore(target, tmp_path / name, action_script=hook)
            assert restored.ok, restored
            assert target.hears(watched, lambda: _touch(path)), name
    assert tuple(verdicts) == HELPED[place]


def test_a_watch_that_no_restore_sets_is_in_the_log(area, criu, target, hook, tmp_path):
    """A deleted file, with its last name and its holder, and a mark that CRIU leaves out."""
    file = area.place("ext4").directory / "gone"
    file.touch()
    target.add_inotify(file)
    held = target.open(file)
    file.unlink()
    marked = target.add_fanotify(file.parent, what="filesystem")
    assert criu.dump(target.pid, tmp_path / "images", action_script=hook).ok
    log = (tmp_path / "images" / "irmapdb.log").read_text()
    assert f"it was {file}; task {target.pid} holds it as fd {held}" in log
    assert "CRIU leaves out the fanotify mark on all of" in log
    assert f"fd {marked.fd} of {target.pid}" in log
    by_hand = steps.pre_dump(steps.StepOptions(target.pid, images_dir=tmp_path / "images"))
    assert [(row.mark.fd, row.is_dropped) for row in by_hand.marks] == [(marked.fd, True)]
