"""The names in a tar archive beside Python's tarfile, and archives that no program should write."""

from __future__ import annotations

import contextlib
import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irmapdb.archive import tar
from irmapdb.archive.members import walk
from irmapdb.errors import ImageError

_FORMATS = {"gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT, "ustar": tarfile.USTAR_FORMAT}

# Names that tarfile does not change: no slash at an end, no empty part, no NUL.
_parts = st.binary(min_size=1, max_size=90).map(
    lambda part: part.replace(b"\0", b"0").replace(b"/", b"1")
)
_names = st.lists(_parts, min_size=1, max_size=6).map(b"/".join)


def _archive(members: list[tuple[bytes, bytes]], tar_format: int) -> bytes:
    made = io.BytesIO()
    with tarfile.open(
        fileobj=made, mode="w", format=tar_format, encoding="utf-8", errors="surrogateescape"
    ) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return made.getvalue()


def _names_in(data: bytes) -> list[bytes]:
    return [one.name for one in tar.members(io.BytesIO(data), tar.Meter("archive"))]


@given(st.lists(st.tuples(_names, st.binary(max_size=1100)), max_size=5))
def test_gnu_and_pax(members: list[tuple[bytes, bytes]]) -> None:
    names = [name for name, _ in members]
    assert _names_in(_archive(members, tarfile.GNU_FORMAT)) == names
    # pax has UTF-8 alone.
    text = [(name, content) for name, content in members if _is_text(name)]
    assert _names_in(_archive(text, tarfile.PAX_FORMAT)) == [name for name, _ in text]


def _is_text(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.parametrize("tar_format", _FORMATS.values(), ids=_FORMATS)
def test_a_name_in_two_fields_and_a_large_number(tar_format: int) -> None:
    name = b"d" * 100 + b"/" + b"f" * 90
    assert _names_in(_archive([(name, b"x" * 513), (b"next", b"")], tar_format)) == [name, b"next"]


def test_a_size_in_base_256_is_passed_over() -> None:
    data = bytearray(_archive([(b"first", b"x" * 600), (b"next", b"")], tarfile.GNU_FORMAT))
    data[124:136] = b"\x80" + (600).to_bytes(11, "big")
    assert _names_in(bytes(data)) == [b"first", b"next"]


@pytest.mark.parametrize("size", [b"\xff" * 12, b"77777777777\0"])
def test_a_member_beyond_the_limit_is_refused(size: bytes) -> None:
    data = bytearray(_archive([(b"first", b"")], tarfile.GNU_FORMAT))
    data[124:136] = size
    with pytest.raises(ImageError, match=r"more than|cut off"):
        _names_in(bytes(data))


@given(st.binary(max_size=2048))
@settings(max_examples=2 * settings.default.max_examples)
def test_any_bytes(data: bytes) -> None:
    with contextlib.suppress(ImageError):
        _names_in(data)


def test_many_records_of_pax_take_no_long_time() -> None:
    # 100,000 records: a copy of the rest for each would take minutes.
    records = b"6 a=b\n" * 100_000 + b"13 path=name\n"
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, len(records)
    data = info.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % 512)
    assert _names_in(data + _archive([(b"short", b"")], tarfile.GNU_FORMAT)) == [b"name"]


def test_names_that_are_too_many_are_refused(monkeypatch) -> None:
    monkeypatch.setattr(tar, "_ALL_NAMES_BYTES", 1000)
    data = _archive([(b"d" * 400 + b"%d" % number, b"") for number in range(3)], tarfile.GNU_FORMAT)
    with pytest.raises(ImageError, match="more than 1,000 bytes of names"):
        _names_in(data)


def test_cut_off_anywhere() -> None:
    whole = _archive([(b"d" * 120, b"x" * 700)], tarfile.GNU_FORMAT)
    for end in range(1, 3 * 512):
        with pytest.raises(ImageError, match="cut off"):
            _names_in(whole[:end])


def test_a_sparse_file_with_a_long_map(tmp_path: Path) -> None:
    """As CRIU packs a tmpfs: `tar --sparse`; the map of this one needs blocks behind the header."""
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        for number in range(60):
            file.seek(number << 16)
            file.write(b"x" * 4096)
    (tmp_path / "last").touch()
    for form in ("gnu", "posix"):
        packed = tmp_path / f"{form}.tar"
        subprocess.run(
            ["tar", "--create", "--sparse", f"--format={form}", "--file", packed, "sparse", "last"],
            cwd=tmp_path,
            check=True,
        )
        assert packed.stat().st_size < sparse.stat().st_size, "it is sparse"
        names = [one.place for one in walk(packed)]
        assert names == ["sparse", "last"]


def test_a_member_of_more_than_8_gib(tmp_path: Path) -> None:
    """pax has the size of such a one in a header of its own, as Go's archives do."""
    packed = tmp_path / "a.tar"
    info = tarfile.TarInfo("pages-1.img")
    info.size = 9 << 30
    with packed.open("wb") as file:
        header = info.tobuf(tarfile.PAX_FORMAT)
        file.write(header)
        file.seek(len(header) + info.size)
        file.write(tarfile.TarInfo("next").tobuf() + bytes(1024))
    assert [one.place for one in walk(packed)] == ["pages-1.img", "next"]
