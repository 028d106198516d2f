"""The limits for an archive: decompression bombs, memory, and numbers of members and mounts."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from irmapdb.archive import layout
from irmapdb.archive.decompress import Allowance, unpacked
from irmapdb.archive.dumped import read_dumped
from irmapdb.archive.files import _Archive
from irmapdb.archive.members import walk
from irmapdb.errors import ImageError
from tests.support.archives import engine_files, files_img, many_watches, mountpoints, pack
from tests.support.whole_archive import MOUNTS, PATHS, refusal, tar_with, whole, write


def _drain(data: bytes, allowance: Allowance) -> None:
    with unpacked(io.BytesIO(data), "part", allowance) as stream:
        while stream.read(1 << 16):
            pass


@pytest.mark.parametrize("form", ["gzip", "zstd"])
def test_a_bomb_is_left(form: str) -> None:
    bomb = pack(bytes(8 << 20), form)
    with pytest.raises(ImageError, match=r"came out of .*decompression bomb"):
        _drain(bomb, Allowance(free_bytes=1 << 20, ratio=20))
    # One limit for all streams of an archive.
    allowance = Allowance(free_bytes=1 << 20, ratio=20)
    small = pack(bytes(300 << 10), form)
    for _ in range(3):
        _drain(small, allowance)
    with pytest.raises(ImageError, match="bomb"):
        _drain(small, allowance)


_SKIPPED = b"\x50\x2a\x4d\x18\x00\x00\x00\x00"
"""A skippable frame of zstd: RFC 8878."""


@pytest.mark.parametrize(
    ("form", "small"),
    [
        pytest.param("zstd", pack(b"", "zstd"), id="empty-zstd"),
        pytest.param("zstd", pack(b"x", "zstd"), id="zstd-of-1-byte"),
        pytest.param("zstd", _SKIPPED, id="skipped-zstd"),
        pytest.param("gzip", pack(b"", "gzip"), id="empty-gzip"),
        pytest.param("gzip", pack(b"x", "gzip"), id="gzip-of-1-byte"),
    ],
)
def test_many_small_frames_are_left(form: str, small: bytes) -> None:
    """Nearly nothing comes out of them, so the ratio does not bound the work."""
    allowance = Allowance(free_frames=100)
    _drain(pack(b"content", form) + small * 50, allowance)
    with pytest.raises(ImageError, match=r"more than 100 frames in \d+ bytes.*bomb"):
        _drain(pack(b"content", form) + small * 200, allowance)


@pytest.mark.parametrize("form", ["gzip", "zstd"])
def test_a_frame_for_each_file_is_no_bomb(form: str) -> None:
    # zstd:chunked; a block of gzip for each 64 KiB, with an empty one at the end (bgzip).
    frame = pack(bytes(512), form)
    _drain(frame * 2000 + pack(b"", form), Allowance(free_frames=10))


class _Counted(io.BytesIO):
    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        return super().read(size)


@pytest.mark.parametrize(
    ("begin", "repeated"),
    [
        pytest.param(pack(b"content", "gzip"), b"\0", id="padding"),
        # RFC 1952: FLG with FNAME and a name, FLG with FCOMMENT and a comment.
        pytest.param(b"\x1f\x8b\x08\x08" + bytes(6), b"n", id="name"),
        pytest.param(b"\x1f\x8b\x08\x10" + bytes(6), b"c", id="comment"),
    ],
)
def test_no_part_of_gzip_is_read_byte_by_byte(begin: bytes, repeated: bytes) -> None:
    """A bomb in a bomb: zstd packs 4 GiB of such bytes into 400 KB."""
    end = b"" if repeated == b"\0" else b"\0" + pack(b"", "gzip")[10:]
    source = _Counted(begin + repeated * 500_000 + end)
    with unpacked(source, "part", Allowance()) as stream:
        assert stream.read(100) == (b"" if end else b"content")
        assert stream.read(100) == b""
    assert source.tell() == len(source.getvalue())
    assert source.reads < 1000


def test_a_window_that_takes_much_memory_is_refused(tmp_path: Path) -> None:
    # A frame with a window of 2 GiB: RFC 8878, 3.1.1.1.
    frame = b"\x28\xb5\x2f\xfd" + bytes((0x00, (31 - 10) << 3)) + b"\x01\x00\x00"
    (tmp_path / "a").write_bytes(frame)
    assert "memory" in refusal(tmp_path / "a").lower()


def test_too_large_an_image_and_too_many_members(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(layout, "_LIMITS_BYTES", {"files.img": 1000})
    files = engine_files("podman", {"files.img": files_img([b"/a" * 2000])})
    assert "more than 1,000 bytes are not read" in refusal(write(tmp_path / "a.tar", files))
    monkeypatch.undo()
    monkeypatch.setattr(layout, "KEPT_BYTES", 200_000)
    many = {f"checkpoint/ghost-file-{number:x}.img": b"x" * 100 for number in range(100)}
    images = engine_files("podman", {"files.img": files_img([b"/a"])})
    assert "its images have more than 200,000 bytes" in refusal(
        write(tmp_path / "b.tar", {**images, **many})
    )


def test_too_many_mounts(tmp_path: Path, monkeypatch) -> None:
    files = whole("podman")
    monkeypatch.setattr(_Archive, "most_mounts", len(MOUNTS) + 1)  # and the root
    assert len(read_dumped(write(tmp_path / "a.tar", files)).watches) == len(PATHS)
    more = {"checkpoint/mountpoints-14.img": mountpoints({})}
    assert "more mounts than irmapdb reads" in refusal(write(tmp_path / "b.tar", files | more))


def test_a_long_name_is_not_kept(tmp_path: Path) -> None:
    """A name may have 1 MiB, and many members may have one."""
    links = []
    for number in range(3):
        link = tarfile.TarInfo(f"{number}{'a' * 100_000}/files.img")
        link.type, link.linkname = tarfile.SYMTYPE, "x"
        links.append((link, b""))
    path = tmp_path / "a.tar"
    path.write_bytes(tar_with(*links))
    kept = layout._Kept("a")
    for one in walk(path):
        kept.take(one)
    assert not kept.links


_PEAK = """
import sys
from pathlib import Path
from irmapdb.archive.dumped import read_dumped
from irmapdb.errors import ImageError
try:
    print(len(read_dumped(Path(sys.argv[1])).watches))
except ImageError as error:
    print(error)
# ru_maxrss would include the peak of the process that called exec.
status = Path("/proc/self/status").read_text().splitlines()
print(next(int(line.split()[1]) >> 10 for line in status if line.startswith("VmHWM:")))
"""


def _peak(archive: Path) -> tuple[str, int]:
    """The answer of read_dumped, and the peak memory of its process in MiB."""
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, archive], capture_output=True, text=True, check=True
    )
    said, peak_mib = done.stdout.splitlines()
    return said, int(peak_mib)


def test_memory_is_bounded(tmp_path: Path) -> None:
    """Many watches, and the largest image with more than are read."""
    archive = tmp_path / "a"
    write(archive, engine_files("podman", {"files.img": many_watches(50_000)}), "zstd")
    said, peak_mib = _peak(archive)
    assert said == "50000"
    assert peak_mib < 128
    more = many_watches(layout.FILES_IMG_LIMIT_BYTES // 24)
    assert 0.9 * layout.FILES_IMG_LIMIT_BYTES < len(more) <= layout.FILES_IMG_LIMIT_BYTES
    write(archive, engine_files("podman", {"files.img": more}), "zstd")
    said, peak_mib = _peak(archive)
    assert "more watches than irmapdb reads" in said
    assert peak_mib < 512


def test_the_time_for_a_path_does_not_grow_with_the_mounts(tmp_path: Path) -> None:
    """Compared one by one, 15,000 paths would take minutes, and 300,000 hours."""
    places = {b"/m/%d" % number: 4 for number in range(15_000)}
    paths = [b"/m/%d/a" % number for number in range(15_000)]
    mounts = [{"destination": f"/m/{number}", "type": "proc"} for number in range(15_000)]
    images = {"files.img": files_img(paths), "mountpoints-1.img": mountpoints(places)}
    archive = tmp_path / "a"
    write(archive, engine_files("podman", images, mounts=mounts))
    assert _peak(archive)[0] == "15000"
    # The same if no mount is at its destination, and all have one name.
    images["mountpoints-1.img"] = mountpoints({b"/m/%d/a" % number: 4 for number in range(15_000)})
    mounts = [{"destination": f"/x/{number}/a", "type": "bind"} for number in range(15_000)]
    write(archive, engine_files("podman", images, mounts=mounts))
    assert _peak(archive)[0] == "15000"


def test_deep_mount_points_take_little_memory(tmp_path: Path) -> None:
    """To keep each directory above them would take gigabytes."""
    images = {"files.img": files_img([b"/a"])}
    mounts = [{"destination": f"/{number}{'/a' * 1900}", "type": "bind"} for number in range(1000)]
    archive = write(tmp_path / "a", engine_files("podman", images, mounts=mounts))
    count, peak_mib = _peak(archive)
    assert count == "1"
    assert peak_mib < 128
