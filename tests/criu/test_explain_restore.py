"""`irmapdb explain` of restores that the kernel, or CRIU, refused: images are changed before."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.explained import explained, stop_of
from tests.support.programs import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.area import MountArea
    from tests.support.criu import Criu
    from tests.support.watcher import Watcher

Entries = list[dict[str, Any]]


def _watches(entries: Entries) -> Iterator[dict[str, Any]]:
    for entry in entries:
        yield from entry.get("ify", {}).get("wd", ())


def _marks(entries: Entries) -> Iterator[dict[str, Any]]:
    for entry in entries:
        yield from entry.get("ffy", {}).get("mark", ())


def _change_watches(**fields: Any) -> Callable[[Entries], None]:
    def change(entries: Entries) -> None:
        for watch in _watches(entries):
            watch.update(fields)

    return change


def _change_marks(**fields: Any) -> Callable[[Entries], None]:
    def change(entries: Entries) -> None:
        for mark in _marks(entries):
            mark.update(fields)

    return change


def _change_files(kind: str, **fields: Any) -> Callable[[Entries], None]:
    def change(entries: Entries) -> None:
        for entry in entries:
            entry.get(kind, {}).update(fields)

    return change


def _on_a_mount(entries: Entries) -> None:
    for mark in _marks(entries):
        del mark["ie"]
        mark.update(type="MOUNT", me={"mnt_id": 99999})


def _one_inode(entries: Entries) -> None:
    first, second = _watches(entries)
    second.update(i_ino=first["i_ino"], f_handle=first["f_handle"])


_INVALID = "Invalid argument"
_CASES = {
    "next-wd-refused": (_change_watches(wd=0x80000004), _INVALID),
    "add-watch-refused": (_change_watches(mask=0), _INVALID),
    "instance-refused": (_change_files("ify", flags=0xFFFFFF), _INVALID),
    "group-refused": (_change_files("ffy", faflags=0xFFFFFF), _INVALID),
    "mark-refused": (_change_marks(mask=0xFFFFFFFF), ""),
    "mark-refused (ignored)": (_change_marks(ignored_mask=0xFFFFFFFF), ""),
    "restore-mount-point": (_on_a_mount, ""),
}
"""The change of the images by the message, and the reason in it."""


def _restored(
    criu: Criu,
    target: Watcher,
    area: MountArea,
    tmp_path: Path,
    change: Callable[[Entries], None],
) -> dict[str, Any]:
    place = area.place("ext4").mountpoint
    target.add_inotify(place / "dir/file")
    target.add_inotify(place / "dir")
    target.add_fanotify(place / "dir/file")
    images = tmp_path / "images"
    assert criu.dump(target.pid, images, leave_running=False).ok
    document = json.loads(run(criu.crit, "decode", "-i", images / "files.img"))
    change(document["entries"])
    changed = tmp_path / "files.json"
    changed.write_text(json.dumps(document))
    run(criu.crit, "encode", "-i", changed, "-o", images / "files.img")
    done = criu.restore(target, images)
    assert not done.ok
    return explained(done, "--offline")


@pytest.mark.parametrize("case", list(_CASES))
def test_a_restore_that_is_refused(
    area: MountArea, each_criu: Criu, target: Watcher, tmp_path: Path, case: str
) -> None:
    change, why = _CASES[case]
    document = _restored(each_criu, target, area, tmp_path, change)
    assert document["action"] == "restore"
    stop = stop_of(document)
    assert (stop["name"], stop["topic"]) == (case.partition(" ")[0], "watch")
    assert why in stop["why"]
    kind = "fanotify" if "mark" in case or "group" in case or "mount" in case else "inotify"
    if case not in {"instance-refused", "group-refused"}:
        assert stop["watch"]["kind"] == kind


def test_two_watches_on_one_inode(
    area: MountArea, each_criu: Criu, target: Watcher, tmp_path: Path
) -> None:
    # inotify_add_watch(2) gives the number that the inode has already. CRIU 4.1 and 4.2 do not say
    # which watch it was.
    stop = stop_of(_restored(each_criu, target, area, tmp_path, _one_inode))
    assert stop["name"] == ("restore-wd" if each_criu.version == "4.3" else "descriptor")
