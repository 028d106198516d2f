"""Every line of real CRIU's log that names a watched inode is a key of `irmapdb lookup`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from irmapdb.commands.keys import parse_keys
from irmapdb.errors import UsageError
from irmapdb.model import InodeKey
from tests.support.filesystems import drop_caches, superblock_kdev

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.area import MountArea
    from tests.support.criu import Criu
    from tests.support.watcher import Watcher


def _keys(line: str) -> set[InodeKey | bytes | None]:
    return {one.key or one.path for one in parse_keys([line])}


@pytest.mark.parametrize("place", ["ext4", "overlay-upper"])
def test_lines_of_a_dump_and_a_restore(
    area: MountArea, criu: Criu, target: Watcher, tmp_path: Path, place: str
) -> None:
    mountpoint = area.place(place).mountpoint
    watched = [
        target.add_inotify(mountpoint / "dir/file"),
        target.add_fanotify(mountpoint / "dir"),
    ]
    kdev = superblock_kdev(mountpoint)
    wanted = {InodeKey(kdev, one.st_ino): one.path for one in watched}
    logs = [criu.dump(target.pid, tmp_path / "warm").log]
    drop_caches()
    forced = criu.dump(
        target.pid,
        tmp_path / "forced",
        force_irmap=True,
        scan_paths=[mountpoint],
        leave_running=False,
        env={"CRIU_FAULT": "128"},
    )
    assert forced.ok, forced
    logs.append(forced.log)
    target.await_dumped()
    restored = criu.restore(target, tmp_path / "forced")
    assert restored.ok, restored
    logs.append(restored.log)

    spellings = [
        (key, re.compile(rf"\b(?:0x)?0*{key.kdev:x}\b.*\b(?:0x)?0*{key.ino:x}\b")) for key in wanted
    ]
    told: dict[InodeKey, set[str]] = {key: set() for key in wanted}
    for line in "\n".join(logs).splitlines():
        if not re.search(r"(irmap|fsnotify): ", line) or "Opening fhandle" in line:
            continue
        for key, spelling in spellings:
            if spelling.search(line.split(" -> ")[0]):
                assert _keys(line) == {key}, line
                told[key].add(re.sub(r"[^A-Za-z_ ]|0x\w+", "", line).strip())
        for path in wanted.values():
            words = "Dumping|Found|Scanned|Revalidate stat for"
            if re.search(rf"({words}) {re.escape(str(path))}( |$)", line):
                assert _keys(line) == {bytes(path)}, line
    assert all(len(forms) >= 4 for forms in told.values()), told


def test_lines_that_name_none(area: MountArea, criu: Criu, target: Watcher, tmp_path: Path) -> None:
    target.add_inotify(area.place("ext4").mountpoint / "dir/file")
    drop_caches()
    done = criu.dump(target.pid, tmp_path / "images", force_irmap=True)
    assert not done.ok
    named = [line for line in done.log.splitlines() if "fsnotify:" in line]
    refused = ("Can't dump that handle", "[fhandle]")
    for words in refused:
        lines = [line for line in named if words in line]
        assert lines, (words, named)
        for line in lines:
            with pytest.raises(UsageError, match="this line names no inode"):
                list(parse_keys([line]))
