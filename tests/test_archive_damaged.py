"""Archives that are damaged, no archives, hostile, or of a newer CRIU."""

from __future__ import annotations

import contextlib
import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irmapdb.archive.decompress import Allowance, unpacked
from irmapdb.archive.dumped import read_dumped
from irmapdb.archive.origins import OriginKind
from irmapdb.archive.tar import Meter, members
from irmapdb.criu.check.restore import check_images
from irmapdb.errors import FileError, ImageError
from tests.support.archives import (
    INVENTORY,
    config_dump,
    engine_files,
    files_img,
    mountpoints,
    pack,
    tar_of,
)
from tests.support.cli import irmapdb
from tests.support.whole_archive import (
    FORMS,
    MOUNTS,
    SPEC_MOUNTS,
    TMPFS,
    refusal,
    tar_with,
    unpack,
    whole,
    write,
)


@pytest.mark.parametrize("form", FORMS)
def test_cut_off_anywhere(form: str, tmp_path: Path) -> None:
    data = pack(tar_of(whole("podman")), form)
    archive = tmp_path / "a.tar"
    for end in (3, 600, len(data) // 3, len(data) // 2, len(data) - 11_000):
        archive.write_bytes(data[: max(end, 3)])
        assert "cut off" in (said := refusal(archive)) or "not a tar archive" in said


@pytest.mark.parametrize("form", ["gzip", "zstd"])
def test_damaged_in_the_middle(form: str, tmp_path: Path) -> None:
    data = bytearray(pack(tar_of(whole("podman")), form))
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(byte ^ 0x5A for byte in data[middle : middle + 64])
    (tmp_path / "a").write_bytes(data)
    assert str(tmp_path / "a") in refusal(tmp_path / "a")


@pytest.mark.parametrize(
    "name", [f"checkpoint/tmpfs-dev-{TMPFS}.tar.gz.img", "rootfs-diff.tar", "volumes/db.tar"]
)
@pytest.mark.parametrize("form", ["archive", "directory"])
def test_a_damaged_archive_inside_is_no_yes(
    name: str,
    form: str,
    tmp_path: Path,
) -> None:
    """CRIU or the engine unpacks it, and fails."""
    good_files = whole("podman")
    place = write(tmp_path / "a.tar", good_files | {name: b"no archive" * 100})
    if form == "directory":
        place = unpack(place, tmp_path / "unpacked")
    base = name.removeprefix("checkpoint/")
    found = [one for one in check_images(place).watches if one.origin == base]
    assert found
    assert not any(one.right for one in found)
    assert all("was not read to its end" in one.why for one in found)
    good = check_images(write(tmp_path / "b.tar", good_files)).watches
    assert all(one.right for one in good if one.origin == base)


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"age-encryption.org/v1\n-> X25519 x\n", "encrypted with age; decrypt it first (age -d)"),
        (b"-----BEGIN PGP MESSAGE-----\n", "encrypted with PGP"),
        (b"Salted__12345678", "encrypted with openssl"),
        (b"\xfd7zXZ\0\0\4", "xz; unpack it first (xz -d)"),
        (b"BZh91AY&SY", "bzip2"),
        (b"PK\x03\x04", "a zip archive"),
    ],
)
def test_a_form_that_is_not_read_is_named(head: bytes, what: str, tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    archive.write_bytes(head + bytes(1000))
    assert what in refusal(archive)
    for command in ("show", "import"):
        done = irmapdb(
            command, archive, *(("--db", tmp_path / "x.db") if command == "import" else ())
        )
        assert done.code == 1
        assert what in done.err
        assert done.err.count("\n") == 1
    archive.write_bytes(pack(head + bytes(1000), "zstd"))
    assert what in refusal(archive)


@pytest.mark.parametrize("inner", ["gzip", "zstd"])
@pytest.mark.parametrize("outer", ["gzip", "zstd"])
def test_an_archive_that_is_packed_twice(inner: str, outer: str, tmp_path: Path) -> None:
    archive = write(tmp_path / "a.tar", whole("podman"), inner)
    archive.write_bytes(pack(archive.read_bytes(), outer))
    assert "packed twice; unpack it once" in refusal(archive)


def test_a_program_or_text_is_no_archive(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    for data in (b"\x7fELF" + bytes(2000), b"text\n" * 300, b""):
        archive.write_bytes(data)
        assert "not a tar archive" in refusal(archive)
    archive.write_bytes(pack(b"text\n" * 300, "gzip"))
    assert "not a tar archive" in refusal(archive)
    with pytest.raises(FileError, match="No such file"):
        check_images(tmp_path / "absent", None)


@given(st.binary(max_size=3000))
@settings(max_examples=settings.default.max_examples)
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with (
        contextlib.suppress(ImageError),
        unpacked(io.BytesIO(data), "any", Allowance()) as stream,
    ):
        for member in members(stream, Meter("any")):
            member.content.read(100)


def test_two_checkpoints_and_none(tmp_path: Path) -> None:
    one = engine_files("podman", {"files.img": files_img([b"/a"])})
    two = {f"{name}/{file}": data for name in ("web", "db") for file, data in one.items()}
    said = refusal(write(tmp_path / "two.tar", two))
    assert "2 checkpoints (db/checkpoint/, web/checkpoint/)" in said
    assert "no checkpoint in it" in refusal(write(tmp_path / "none.tar", {"etc/passwd": b""}))
    failed = {"checkpoint/files.img": files_img([b"/a"])}
    assert "no inventory.img" in refusal(write(tmp_path / "failed.tar", failed))
    pre_dump = {"checkpoint/inventory.img": INVENTORY}
    assert "no files.img" in refusal(write(tmp_path / "pre.tar", pre_dump))


def test_a_name_that_is_there_twice_counts_once_and_last(tmp_path: Path) -> None:
    first = tarfile.TarInfo("checkpoint/files.img"), files_img([b"/first"])
    inventory = tarfile.TarInfo("./checkpoint/inventory.img"), INVENTORY
    last = tarfile.TarInfo("./checkpoint/files.img"), files_img([b"/last"])
    archive = tmp_path / "a.tar"
    archive.write_bytes(tar_with(first, inventory, last))
    assert [one.watch.path for one in read_dumped(archive).watches] == [b"/last"]


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
def test_a_link_in_place_of_an_image(kind: bytes, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(files_img([b"/etc/shadow"]))
    link = tarfile.TarInfo("checkpoint/mountpoints-1.img")
    link.type, link.linkname = kind, str(secret)
    good = [
        (tarfile.TarInfo("checkpoint/files.img"), files_img([b"/a"])),
        (tarfile.TarInfo("checkpoint/inventory.img"), INVENTORY),
    ]
    archive = tmp_path / "a.tar"
    archive.write_bytes(tar_with(*good, (link, b"")))
    assert "a link, not a file" in refusal(archive)
    link.name = "checkpoint/files.img"
    archive.write_bytes(tar_with(*good, (link, b"")))  # it hides the good one
    assert "no checkpoint" in (said := refusal(archive)) or "no files.img" in said


def test_names_with_dots_are_other_names(tmp_path: Path) -> None:
    evil = {
        "../checkpoint/files.img": files_img([b"/evil"]),
        "checkpoint/../checkpoint/files.img": files_img([b"/evil"]),
        "checkpoint/deep/files.img": files_img([b"/evil"]),
        "../../etc/passwd": b"root::0:0",
        "checkpoint/\x1b[31mRED\n": b"",
    }
    files = {**evil, **engine_files("podman", {"files.img": files_img([b"/good"])}), **evil}
    archive = write(tmp_path / "a.tar", files)
    assert [one.watch.path for one in read_dumped(archive).watches] == [b"/good"]


def test_the_name_of_a_volume_names_no_file_outside(tmp_path: Path) -> None:
    """Of a checkpoint that was unpacked, `volumes/NAME.tar` is a path."""
    name = "../../secret"
    config = config_dump(namedVolumes=[{"volumeName": name, "dest": "/var/lib/db"}])
    images = {"files.img": files_img([b"/var/lib/db/a"]), "mountpoints-1.img": mountpoints(MOUNTS)}
    files = engine_files("podman", images, mounts=SPEC_MOUNTS) | {"config.dump": config}
    unpacked = unpack(write(tmp_path / "a.tar", files), tmp_path / "unpacked")
    (unpacked / "volumes").mkdir()
    (tmp_path / "secret.tar").write_bytes(tar_of({"a": b"x"}))
    (found,) = read_dumped(unpacked).watches
    assert found.kind is OriginKind.BIND


def test_unknown_fields_and_another_magic(tmp_path: Path) -> None:
    known = files_img([b"/a"])
    more = (
        known[:8]
        + (len(known) - 12 + 4).to_bytes(4, "little")
        + known[12:]
        + b"\xf8\x3f\x2a"
        + b"\x00"
    )
    unknown_field = (
        known[:8] + (len(known) - 12 + 3).to_bytes(4, "little") + known[12:] + b"\xf8\x3f\x2a"
    )
    archive = write(tmp_path / "a.tar", engine_files("podman", {"files.img": unknown_field}))
    assert [one.watch.path for one in read_dumped(archive).watches] == [b"/a"]
    write(archive, engine_files("podman", {"files.img": more}))
    assert "not a protobuf message" in refusal(archive)
    other = b"\x19\x43\x56\x54\x01\x02\x03\x04" + known[8:]
    write(archive, engine_files("podman", {"files.img": other}))
    assert "a CRIU image of unknown kind 0x4030201" in refusal(archive)
