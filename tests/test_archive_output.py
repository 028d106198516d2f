"""The output of the commands about an archive: hostile names, and 80 columns."""

from __future__ import annotations

import json
import os
from pathlib import Path

from irmapdb.commands.layout import text_width
from tests.support.archives import (
    INVENTORY,
    config_dump,
    engine_files,
    files_img,
    mountpoints,
    tar_of,
)
from tests.support.cli import irmapdb
from tests.support.terminal import at_terminal
from tests.support.whole_archive import DATA, HOSTS, MOUNTS, SPEC_MOUNTS, whole, write

_DATA = Path(__file__).parent / "data" / "images"


_EVIL = "\x1b[31mRED\n\u202e\udce9"


def test_names_of_an_archive_do_not_control_the_terminal(tmp_path: Path) -> None:
    evil = os.fsencode(_EVIL)
    images = {
        "files.img": files_img([b"/" + evil, b"/data/" + evil, b"/volume/a"]),
        "mountpoints-1.img": mountpoints({b"/data": DATA, b"/" + evil: HOSTS, b"/volume": 0x31}),
    }
    volume = "\x1b[31mRED\n\u202e"
    volumes = [{"volumeName": volume, "dest": "/volume"}]
    mounts = [
        {"destination": "/data", "type": "bind", "source": f"/{_EVIL}"},
        {"destination": "/volume", "type": "bind", "source": "/volumes/x"},
    ]
    config = config_dump(name=_EVIL, rootfsImageName=_EVIL, runtime=_EVIL, namedVolumes=volumes)
    files = engine_files("podman", images, mounts=mounts) | {
        "config.dump": config,
        f"volumes/{volume}.tar": tar_of({"b": b"x"}),
    }
    archive = write(tmp_path / "a.tar", files)
    for words in (["show", archive], ["check", "--images", archive], ["diff", archive, archive]):
        done = irmapdb(*words)
        assert done.code in {0, 3}
        assert all(line.isprintable() for line in done.said.splitlines())
        assert irmapdb(*words, "--json").out.isascii()
    for name in (f"checkpoint/{_EVIL}/inventory.img", _EVIL):
        bad = write(tmp_path / "b.tar", {name: INVENTORY, f"{name}/files.img": b"x"})
        done = irmapdb("show", bad)
        assert (done.code, done.out) == (1, "")
        assert done.err.removesuffix("\n").isprintable()


def test_half_a_surrogate_pair_in_a_name_is_no_crash(tmp_path: Path) -> None:
    """JSON can have it, and no encoding can."""
    half = "\ud800"
    config = config_dump(
        name=half,
        rootfsImageName=half,
        runtime=half,
        namedVolumes=[{"volumeName": half, "dest": "/var/lib/db"}],
    )
    images = {"files.img": files_img([b"/var/lib/db/a"]), "mountpoints-1.img": mountpoints(MOUNTS)}
    files = engine_files("podman", images, mounts=SPEC_MOUNTS) | {"config.dump": config}
    archive = write(tmp_path / "a.tar", files)
    for words in (["show", archive], ["check", "--images", archive], ["diff", archive, archive]):
        assert irmapdb(*words).code in {0, 3}


def test_a_terminal_of_80_columns_is_wide_enough(tmp_path: Path) -> None:
    archive = write(tmp_path / "a.tar", whole("cri-o"))
    for words in (["show"], ["check", "--images"]):
        code, said = at_terminal(
            *words, str(archive), cwd=tmp_path, environment={"COLUMNS": "80", "NO_COLOR": "1"}
        )
        assert code in {0, 3}
        lines = said.decode().splitlines()
        assert max(map(text_width, lines)) <= 80
        (row,) = (line for line in lines if "/var/lib/db/row" in line)
        assert "volume" in row
        # The source of a bind mount, which the target host must have.
        assert any("/srv/caf\\xe9" in line for line in lines)


def test_other_images_are_not_taken_for_an_archive(tmp_path: Path) -> None:
    shown = irmapdb("show", _DATA / "files.img")
    assert "/srv/irmap/plain" in shown.out
    assert "8 watches" in shown.err
    assert irmapdb("show", _DATA / "files.img", "--json").code == 0
    assert irmapdb("show", _DATA / "files.img", "--pretty").code == 2
    (tmp_path / "stats-dump").write_bytes(_DATA.joinpath("files.img").read_bytes()[:4] + b"\0" * 8)
    assert irmapdb("show", tmp_path / "stats-dump").code == 1
    database = tmp_path / "irmap.db"
    assert irmapdb("import", _DATA / "files.img", "--db", database).code == 0
    entries = json.loads(irmapdb("show", database, "--json").out)["entries"]
    # wd 4 and the mark on a mount have no entry.
    assert len(entries) == 6
    assert irmapdb("diff", _DATA / "files.img", database).code == 3
