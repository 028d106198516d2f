"""show and diff beside real CRIU: its images have the watches of the task, as crit decodes them."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
from typing import TYPE_CHECKING

from tests.support.cli import irmapdb
from tests.support.json_contract import documents
from tests.support.notify import IN_ATTRIB, IN_OPEN

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from tests.support.area import MountArea
    from tests.support.check_outcome import Bench


def _json(*words: str | Path, code: int = 0) -> Any:
    done = irmapdb(*words, "--json")
    assert done.code == code, done.said
    (document,) = documents(done.out)
    return document


def _crit(bench: Bench, image: Path) -> Any:
    out = subprocess.run(
        [bench.criu.crit, "decode", "-i", image], capture_output=True, check=True, text=True
    ).stdout
    return json.loads(out)["entries"]


def test_images_and_figures_of_a_dump(bench: Bench, area: MountArea, tmp_path: Path) -> None:
    directory = area.place("ext4").directory
    target = bench.target
    target.add_inotify(directory / "file", IN_OPEN)
    target.add_inotify(directory, IN_ATTRIB)
    target.add_fanotify(directory / "file")
    images = tmp_path / "images"
    assert bench.criu.dump(target.pid, images).ok
    paths = {str(directory), str(directory / "file")}

    shown = _json("show", images / "files.img")
    assert {one["path"] for one in shown["watches"]} == paths
    wds = {one["wd"]: one for one in shown["watches"] if one["kind"] == "inotify"}
    decoded = [one["ify"] for one in _crit(bench, images / "files.img") if "ify" in one]
    (inotify,) = decoded
    assert {wd["wd"]: (wd["i_ino"], wd["mask"]) for wd in inotify["wd"]} == {
        wd: (one["ino"], one["mask"]) for wd, one in wds.items()
    }

    shown = _json("show", images / "stats-dump")
    (figures,) = _crit(bench, images / "stats-dump")
    assert shown["figures"]["frozen_us"] == figures["dump"]["frozen_time"]
    assert shown["figures"]["pages_written"] == figures["dump"]["pages_written"]
    told = irmapdb("show", images / "stats-dump")
    assert "frozen_time" not in told.out
    assert "µs" in told.out

    checkpoint = _json("show", images)
    assert {one["path"] for one in checkpoint["watches"]} == paths
    assert checkpoint["container"] is None
    assert checkpoint["stats"]["figures"] == shown["figures"]
    packed = tmp_path / "packed.tar.gz"
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(images, "checkpoint")
    assert _json("show", packed)["watches"] == checkpoint["watches"]
    database = tmp_path / "irmap.db"
    assert irmapdb("import", packed, "--db", database).code == 0
    entries = _json("show", database)["entries"]
    assert {one["path"] for one in entries} == paths

    # The images of irmapdb's own dump.
    assert irmapdb("dump", "-t", str(target.pid), "-D", tmp_path / "ours").code == 0
    ours = [_json("show", tmp_path / "ours" / f"{kind}.img") for kind in ("inotify", "fanotify")]
    assert {one["path"] for image in ours for one in image["watches"]} == paths
    for other in (tmp_path / "ours" / "irmap.db", str(target.pid), packed):
        assert irmapdb("diff", images, other).code == 0, irmapdb("diff", images, other).out


def test_two_work_dirs_are_compared(bench: Bench, area: MountArea, tmp_path: Path) -> None:
    directory = area.place("ext4").directory / "dir"
    target = bench.target
    pid = str(target.pid)
    works = [tmp_path / name for name in ("before", "after", "only-cache")]
    for work, name in zip(works, ("one", "two", "three"), strict=True):
        (directory / name).touch()
        target.add_inotify(directory / name, IN_OPEN)
        (tmp_path / "images").mkdir(exist_ok=True)
        assert irmapdb("pre-dump", "-t", pid, "-D", tmp_path / "images", "-W", work).code == 0
    (works[2] / "irmap.db").unlink()
    for before, after, names in ((works[0], works[1], ["two"]), (works[1], works[2], ["three"])):
        found = _json("diff", before, after, code=3)
        paths = [one["after"]["path"] for one in found["differences"]]
        assert [os.path.basename(one) for one in paths] == names
    assert irmapdb("diff", works[0], works[0]).code == 0
    # With images of a whole dump in it, a work dir is an images dir.
    assert bench.criu.dump(target.pid, works[0]).ok
    assert _json("diff", works[0], works[0])["before"]["kind"] == "checkpoint"
    empty = irmapdb("diff", tmp_path / "images", works[1])
    assert empty.code == 1
    assert "a directory with no inventory.img" in empty.err


def test_each_difference_is_listed(bench: Bench, area: MountArea, tmp_path: Path) -> None:
    directory = area.place("ext4").directory / "dir"
    target = bench.target
    names = ("same", "moved", "masked", "removed", "one", "two")
    for name in (*names, "added"):
        (directory / name).touch()
    watches = {name: target.add_inotify(directory / name, IN_OPEN) for name in names}
    images = tmp_path / "images"
    assert bench.criu.dump(target.pid, images).ok
    pid = str(target.pid)
    assert irmapdb("diff", images, pid).code == 0

    (directory / "moved").rename(directory / "there")
    (directory / "one").rename(directory / "aside")
    (directory / "two").rename(directory / "one")
    (directory / "aside").rename(directory / "two")
    target.add_inotify(directory / "masked", IN_OPEN | IN_ATTRIB)  # the same watch, more events
    target.remove(watches["removed"])
    target.add_inotify(directory / "added", IN_OPEN)
    found = _json("diff", images, pid, code=3)

    def name(side: dict[str, Any] | None) -> str | None:
        return None if side is None else os.path.basename(side["path"])

    told = {
        (one["change"], name(one["before"]), name(one["after"])) for one in found["differences"]
    }
    assert told == {
        ("added", None, "added"),
        ("removed", "removed", None),
        ("other-path", "moved", "there"),
        ("other-path", "one", "two"),
        ("other-path", "two", "one"),
        ("other-mask", "masked", "masked"),
    }
    assert found["same"] == 1
    (masked,) = (one for one in found["differences"] if one["change"] == "other-mask")
    assert (masked["before"]["mask"], masked["after"]["mask"]) == (IN_OPEN, IN_OPEN | IN_ATTRIB)
    # The other way round, added is removed.
    back = _json("diff", pid, images, code=3)["differences"]
    assert sorted(one["change"] for one in back) == sorted(one[0] for one in told)
    assert ("removed", "added") in {(one["change"], name(one["before"])) for one in back}
    quiet = irmapdb("diff", images, pid, "-q")
    assert quiet == (3, "", "")
