"""Archives of checkpoints: the layouts of the engines, the sources of paths, hostile archives."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irmapdb.archive import layout
from irmapdb.archive.decompress import Allowance, unpacked
from irmapdb.archive.dumped import read_dumped
from irmapdb.archive.files import _Archive
from irmapdb.archive.members import walk
from irmapdb.archive.origins import OriginKind, _Mounts
from irmapdb.archive.tar import Meter, members
from irmapdb.commands.layout import text_width
from irmapdb.criu.check.restore import RestoreVerdict, check_images
from irmapdb.errors import FileError, ImageError
from irmapdb.image.mounts import DumpedMount
from tests.support import archives
from tests.support.archives import (
    ENGINES,
    INVENTORY,
    engine_files,
    files_img,
    mountpoints,
    pack,
    tar_of,
)
from tests.support.cli import irmapdb
from tests.support.terminal import at_terminal

_DATA = Path(__file__).parent / "data" / "images"
FORMS = ("tar", "gzip", "zstd")
TMPFS = 0x2D
SHM = 0x2E
DATA = 0x2F
HOSTS = 0x30


def _write(path: Path, files: dict[str, bytes], form: str = "tar") -> Path:
    path.write_bytes(pack(tar_of(files), form))
    return path


PATHS = {
    b"/etc/nginx": (OriginKind.ROOT, "the image"),
    b"/etc/changed": (OriginKind.DIFF, "rootfs-diff.tar"),
    b"/etc/gone": (OriginKind.ROOT, "missing (deleted.files has it)"),
    b"/tmp/inside": (OriginKind.TMPFS, "tmpfs-dev-45.tar.gz.img"),
    b"/tmp/lost": (OriginKind.TMPFS, "missing (tmpfs-dev-45.tar.gz.img lacks it)"),
    b"/dev/shm/segment": (OriginKind.TMPFS, "devshm-checkpoint.tar"),
    b"/data/file": (OriginKind.BIND, "the mount /data (/srv/caf\\xe9/file on the host)"),
    b"/etc/hosts": (OriginKind.ENGINE, "the mount /etc/hosts"),
    b"/var/lib/db/row": (OriginKind.VOLUME, "volumes/db.tar"),
    b"/proc/sys": (OriginKind.MOUNT, "the mount /proc"),
    None: (None, "the handle, without a path"),
}
MOUNTS = {
    b"/tmp": TMPFS,
    b"/dev/shm": SHM,
    b"/data": DATA,
    b"/etc/hosts": HOSTS,
    b"/var/lib/db": 0x31,
    b"/proc": 4,
}
SPEC_MOUNTS = [
    {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
    {"destination": "/dev/shm", "type": "bind", "source": f"/run/{archives.CONTAINER_ID}/shm"},
    {"destination": "/data", "type": "bind", "source": "/srv/caf\udce9"},
    {"destination": "/etc/hosts", "type": "bind", "source": f"/c/{archives.CONTAINER_ID}/hosts"},
    {"destination": "/var/lib/db", "type": "bind", "source": "/volumes/db/_data"},
]


def _whole(engine: str) -> dict[str, bytes]:
    """An archive with a watch from each source."""
    images = {
        "files.img": files_img(PATHS),
        "mountpoints-13.img": mountpoints(MOUNTS),
        f"tmpfs-dev-{TMPFS}.tar.gz.img": pack(tar_of({"./": b"", "./inside": b"x"}), "gzip"),
    }
    more = {
        "config.dump": archives.config_dump(
            namedVolumes=[{"volumeName": "db", "dest": "/var/lib/db"}]
        ),
        "rootfs-diff.tar": tar_of({"etc/": b"", "etc/changed": b"new"}),
        "deleted.files": json.dumps(["/etc/gone"]).encode(),
        "devshm-checkpoint.tar": tar_of({"segment": b"x"}),
        "volumes/db.tar": tar_of({"row": b"x"}),
    }
    return {**engine_files(engine, images, mounts=SPEC_MOUNTS, more=more), **more}


@pytest.mark.parametrize("small_bytes", [0, 2048, 1 << 20])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("engine", ENGINES)
def test_each_path_and_its_origin(
    engine: str, form: str, small_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Archives inside that are larger are looked for in a second pass.
    monkeypatch.setattr(layout, "_SMALL_BYTES", small_bytes)
    archive = _write(tmp_path / "name.means.nothing", _whole(engine), form)
    dumped = read_dumped(archive)
    told = {one.watch.path: (one.kind, one.where) for one in dumped.watches}
    assert told == PATHS
    assert (dumped.container.engine, dumped.container.name) == (engine, "web")
    assert dumped.container.image == "docker.io/library/nginx:latest"
    assert dumped.container.pod == ("" if engine == "podman" else "shop/web-0")
    assert dumped.container.criu_version == ("4.1.1" if engine == "cri-o" else "")


@pytest.mark.parametrize("order", ["reversed", "sorted"])
def test_the_order_of_the_members_does_not_matter(order: str, tmp_path: Path) -> None:
    files = _whole("podman")
    names = sorted(files) if order == "sorted" else [*files][::-1]
    archive = _write(tmp_path / "a.tar", {name: files[name] for name in names}, "gzip")
    told = {one.watch.path: (one.kind, one.where) for one in read_dumped(archive).watches}
    assert told == PATHS


def _unpack(archive: Path, to: Path) -> Path:
    to.mkdir()
    with tarfile.open(archive) as tar:
        tar.extractall(to, filter="data")
    return to


def test_an_unpacked_archive_is_the_same(tmp_path: Path) -> None:
    archive = _write(tmp_path / "a.tar", _whole("podman"))
    directory = _unpack(archive, tmp_path / "unpacked")
    expected = read_dumped(archive)
    for named in (directory, directory / "checkpoint"):
        found = read_dumped(named)
        assert found.watches == expected.watches
        assert found.container == expected.container


def test_a_layer_and_an_image_that_holds_it(tmp_path: Path) -> None:
    layer = tar_of(_whole("podman"))
    digest = "ab" * 32
    rest = {"oci-layout": b"{}", "index.json": b"{}", "blobs/sha256/cd": b'{"config": 1}'}
    for number, form in enumerate(FORMS):
        for name in (f"blobs/sha256/{digest}", f"{digest}/layer.tar", f"{digest}.tar"):
            blob = {name: pack(layer, form)}
            archive = _write(tmp_path / f"{number}.tar", {**rest, **blob}, "gzip")
            told = {one.watch.path: (one.kind, one.where) for one in read_dumped(archive).watches}
            assert told == PATHS


@pytest.mark.parametrize("top", ["", "img/", "./", "./img/"])
def test_an_images_dir_that_was_packed(top: str, tmp_path: Path) -> None:
    files = {f"{top}files.img": files_img([b"/no-such-file"]), f"{top}inventory.img": INVENTORY}
    report = check_images(_write(tmp_path / "a.tar", files), None)
    assert report.root == Path("/")
    (one,) = report.watches
    assert (one.verdict, one.kind) == (RestoreVerdict.MISSING, OriginKind.ROOT)
    assert report.container.engine == ""


def test_verdicts_with_and_without_a_root(tmp_path: Path) -> None:
    archive = _write(tmp_path / "a.tar", _whole("podman"), "zstd")
    rootless = {one.watch.path: one.verdict for one in check_images(archive, None).watches}
    missing, brought = RestoreVerdict.MISSING, RestoreVerdict.BROUGHT
    expected = {
        b"/etc/nginx": RestoreVerdict.IMAGE,
        b"/etc/changed": brought,
        b"/etc/gone": missing,
        b"/tmp/inside": brought,
        b"/tmp/lost": missing,
        b"/dev/shm/segment": brought,
        b"/data/file": missing,  # /srv/caf\xe9 is not on this machine
        b"/etc/hosts": brought,
        b"/var/lib/db/row": brought,
        b"/proc/sys": brought,
        None: RestoreVerdict.NO_FILESYSTEM,
    }
    assert rootless == expected
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    rooted = {one.watch.path: one.verdict for one in check_images(archive, root).watches}
    assert rooted == {**expected, b"/etc/nginx": missing}
    (root / "etc" / "nginx").touch()
    rooted = {one.watch.path: one.verdict for one in check_images(archive, root).watches}
    assert rooted == {**expected, b"/etc/nginx": RestoreVerdict.THERE}


def test_the_source_of_a_bind_mount(tmp_path: Path) -> None:
    source = tmp_path / "source"
    images = {"files.img": files_img([b"/data/sub/file"]), "mountpoints-1.img": mountpoints(MOUNTS)}

    def check(mounted: str) -> tuple[RestoreVerdict, bytes | None, str]:
        mounts = [{"destination": "/data/", "type": "bind", "source": mounted}]
        files = engine_files("podman", images, mounts=mounts)
        (one,) = check_images(_write(tmp_path / "a.tar", files), None).watches
        return one.verdict, one.source, one.why

    file = source / "sub" / "file"
    verdict, wanted, why = check(str(source))
    assert (verdict, wanted) == (RestoreVerdict.MISSING, bytes(file))
    assert f"needs {source}: No such file" in why
    file.parent.mkdir(parents=True)
    assert f"needs {file}: No such file" in check(str(source))[2]
    file.touch()
    assert check(str(source)) == (RestoreVerdict.BROUGHT, bytes(file), f"{file} has it here")
    # irmapdb looks up neither the target of a link nor a text that is no path.
    (tmp_path / "link").symlink_to(source)
    assert check(str(tmp_path / "link"))[0] is RestoreVerdict.BROUGHT
    assert "target host must have" in check(str(tmp_path / "link"))[2]
    assert check(f"{source}/../source")[0] is RestoreVerdict.BROUGHT
    assert check("relative")[1] is None
    assert check("/a\0b")[1] == b"/a/sub/file"


def test_a_volume_of_kubelet_is_made_for_each_pod(tmp_path: Path) -> None:
    images = {"files.img": files_img([b"/data/file"]), "mountpoints-1.img": mountpoints(MOUNTS)}
    mounts = [
        {
            "destination": "/data",
            "source": "/var/lib/kubelet/pods/uid/volumes/config",
            "type": "bind",
        }
    ]
    for engine in ("cri-o", "containerd"):
        files = engine_files(engine, images, mounts=mounts)
        (one,) = check_images(_write(tmp_path / "a.tar", files), None).watches
        assert (one.verdict, one.kind) == (RestoreVerdict.BROUGHT, OriginKind.ENGINE)
        assert one.right


# --- bad input ------------------------------------------------------------------------------------


def _refused(path: Path) -> str:
    with pytest.raises(ImageError) as caught:
        check_images(path, None)
    return str(caught.value)


@pytest.mark.parametrize("form", FORMS)
def test_cut_off_anywhere(form: str, tmp_path: Path) -> None:
    data = pack(tar_of(_whole("podman")), form)
    archive = tmp_path / "a.tar"
    for end in (3, 600, len(data) // 3, len(data) // 2, len(data) - 11_000):
        archive.write_bytes(data[: max(end, 3)])
        assert "cut off" in (said := _refused(archive)) or "not a tar archive" in said


@pytest.mark.parametrize("form", ["gzip", "zstd"])
def test_damaged_in_the_middle(form: str, tmp_path: Path) -> None:
    data = bytearray(pack(tar_of(_whole("podman")), form))
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(byte ^ 0x5A for byte in data[middle : middle + 64])
    (tmp_path / "a").write_bytes(data)
    assert str(tmp_path / "a") in _refused(tmp_path / "a")


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
    assert what in _refused(archive)
    for command in ("show", "import"):
        done = irmapdb(
            command, archive, *(("--db", tmp_path / "x.db") if command == "import" else ())
        )
        assert done.code == 1
        assert what in done.err
        assert done.err.count("\n") == 1


def test_a_program_or_text_is_no_archive(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    for data in (b"\x7fELF" + bytes(2000), b"text\n" * 300, b""):
        archive.write_bytes(data)
        assert "not a tar archive" in _refused(archive)
    archive.write_bytes(pack(b"text\n" * 300, "gzip"))
    assert "not a tar archive" in _refused(archive)
    with pytest.raises(FileError, match="No such file"):
        check_images(tmp_path / "absent", None)


def _tar_with(*infos: tuple[tarfile.TarInfo, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for info, content in infos:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return made.getvalue()


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
    archive.write_bytes(_tar_with(*good, (link, b"")))
    assert "a link, not a file" in _refused(archive)
    link.name = "checkpoint/files.img"
    archive.write_bytes(_tar_with(*good, (link, b"")))  # it hides the good one
    assert "no checkpoint" in (said := _refused(archive)) or "no files.img" in said


def test_names_that_lead_elsewhere_are_other_names(tmp_path: Path) -> None:
    evil = {
        "../checkpoint/files.img": files_img([b"/evil"]),
        "checkpoint/../checkpoint/files.img": files_img([b"/evil"]),
        "checkpoint/deep/files.img": files_img([b"/evil"]),
        "../../etc/passwd": b"root::0:0",
        "checkpoint/\x1b[31mRED\n": b"",
    }
    files = {**evil, **engine_files("podman", {"files.img": files_img([b"/good"])}), **evil}
    archive = _write(tmp_path / "a.tar", files)
    assert [one.watch.path for one in read_dumped(archive).watches] == [b"/good"]


def test_a_name_that_is_there_twice_counts_once_and_last(tmp_path: Path) -> None:
    first = tarfile.TarInfo("checkpoint/files.img"), files_img([b"/first"])
    inventory = tarfile.TarInfo("./checkpoint/inventory.img"), INVENTORY
    last = tarfile.TarInfo("./checkpoint/files.img"), files_img([b"/last"])
    archive = tmp_path / "a.tar"
    archive.write_bytes(_tar_with(first, inventory, last))
    assert [one.watch.path for one in read_dumped(archive).watches] == [b"/last"]


def test_an_image_with_a_root_is_no_checkpoint_beside_it(tmp_path: Path) -> None:
    """`ctr images export` can have the layers of the image too, with any files in them."""
    root = {f"var/lib/dpkg/{name}": bytes(5 << 20) for name in ("status", "spec.dump")}
    root |= {"usr/share/doc/criu/files.img": b"x", "usr/share/doc/criu/inventory.img": b"x"}
    blobs = {
        "blobs/sha256/aa": pack(tar_of(root), "gzip"),
        "blobs/sha256/bb": tar_of({"files.img": files_img([b"/a"]), "inventory.img": INVENTORY}),
    }
    dumped = read_dumped(_write(tmp_path / "a.tar", blobs))
    assert [one.watch.path for one in dumped.watches] == [b"/a"]
    assert dumped.container.engine == "containerd"


def test_two_checkpoints_and_none(tmp_path: Path) -> None:
    one = engine_files("podman", {"files.img": files_img([b"/a"])})
    two = {f"{name}/{file}": data for name in ("web", "db") for file, data in one.items()}
    said = _refused(_write(tmp_path / "two.tar", two))
    assert "2 checkpoints (db/checkpoint/, web/checkpoint/)" in said
    assert "no checkpoint in it" in _refused(_write(tmp_path / "none.tar", {"etc/passwd": b""}))
    failed = {"checkpoint/files.img": files_img([b"/a"])}
    assert "no inventory.img" in _refused(_write(tmp_path / "failed.tar", failed))
    pre_dump = {"checkpoint/inventory.img": INVENTORY}
    assert "no files.img" in _refused(_write(tmp_path / "pre.tar", pre_dump))


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


def test_many_empty_frames_are_left() -> None:
    """Nothing comes out of them, so the ratio does not bound the work."""
    allowance = Allowance(limit_frames=100)
    _drain(pack(b"content", "zstd") + pack(b"", "zstd") * 50, allowance)
    for frames in (pack(b"", "zstd"), b"\x50\x2a\x4d\x18\x00\x00\x00\x00"):
        with pytest.raises(ImageError, match=r"more than 100 frames.*bomb"):
            _drain(frames * 200, allowance)


def test_many_empty_members_of_gzip_are_left() -> None:
    allowance = Allowance(limit_frames=100)
    _drain(pack(b"content", "gzip") + pack(b"", "gzip") * 50, allowance)
    with pytest.raises(ImageError, match=r"more than 100 frames.*bomb"):
        _drain(pack(b"", "gzip") * 200, allowance)


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
    assert "memory" in _refused(tmp_path / "a").lower()


def test_too_large_an_image_and_too_many_members(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(layout, "_LIMITS_BYTES", {"files.img": 1000})
    files = engine_files("podman", {"files.img": files_img([b"/a" * 2000])})
    assert "more than 1,000 bytes are not read" in _refused(_write(tmp_path / "a.tar", files))
    monkeypatch.undo()
    monkeypatch.setattr(layout, "KEPT_BYTES", 200_000)
    many = {f"checkpoint/ghost-file-{number:x}.img": b"x" * 100 for number in range(100)}
    images = engine_files("podman", {"files.img": files_img([b"/a"])})
    assert "its images have more than 200,000 bytes" in _refused(
        _write(tmp_path / "b.tar", {**images, **many})
    )


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
    whole = _whole("podman")
    place = _write(tmp_path / "a.tar", whole | {name: b"no archive" * 100})
    if form == "directory":
        place = _unpack(place, tmp_path / "unpacked")
    base = name.removeprefix("checkpoint/")
    found = [one for one in check_images(place).watches if one.origin == base]
    assert found
    assert not any(one.right for one in found)
    assert all("was not read to its end" in one.why for one in found)
    good = check_images(_write(tmp_path / "b.tar", whole)).watches
    assert all(one.right for one in good if one.origin == base)


def test_too_many_mounts(tmp_path: Path, monkeypatch) -> None:
    files = _whole("podman")
    monkeypatch.setattr(_Archive, "most_mounts", len(MOUNTS) + 1)  # and the root
    assert len(read_dumped(_write(tmp_path / "a.tar", files)).watches) == len(PATHS)
    more = {"checkpoint/mountpoints-14.img": mountpoints({})}
    assert "more mounts than irmapdb reads" in _refused(_write(tmp_path / "b.tar", files | more))


@pytest.mark.parametrize(
    ("path", "place"),
    [
        (b"/a", b"/a"),
        (b"/a/", b"/a"),
        (b"/a/b", b"/a/b"),
        (b"/a/bc", b"/a"),
        (b"/a//b", b"/a"),
        (b"/ab", None),
        (b"/", None),
        (b"", None),
        (b"a/b", None),
        (b"/a" * 3000, b"/a"),
        (b"/a/" + b"b" * 5000, b"/a"),
        (b"b" * 5000, None),
        (b"/" * 5000, None),
    ],
)
def test_the_mount_of_a_path(path: bytes, place: bytes | None) -> None:
    old = DumpedMount(1, 5, b"/", b"/a")
    root, mine, below = (old._replace(mountpoint=one) for one in (b"/", b"/a", b"/a/b"))
    mounts = _Mounts([[root, old._replace(kdev=4), mine, below]])
    found = mounts.of(path, None)
    assert (found and (found.mountpoint, found.kdev)) == (place and (place, 5))
    assert mounts.of(path, 1) == found
    assert mounts.of(path, 2) is None
    assert _Mounts([]).of(path, None) is None


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
    _write(archive, engine_files("podman", {"files.img": archives.many_watches(50_000)}), "zstd")
    said, peak_mib = _peak(archive)
    assert said == "50000"
    assert peak_mib < 128
    more = archives.many_watches(layout.FILES_IMG_LIMIT_BYTES // 24)
    assert 0.9 * layout.FILES_IMG_LIMIT_BYTES < len(more) <= layout.FILES_IMG_LIMIT_BYTES
    _write(archive, engine_files("podman", {"files.img": more}), "zstd")
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
    _write(archive, engine_files("podman", images, mounts=mounts))
    assert _peak(archive)[0] == "15000"


@given(st.binary(max_size=3000))
@settings(max_examples=settings.default.max_examples)
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with (
        contextlib.suppress(ImageError),
        unpacked(io.BytesIO(data), "any", Allowance()) as stream,
    ):
        for member in members(stream, Meter("any")):
            member.content.read(100)


# --- a newer CRIU ---------------------------------------------------------------------------------


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
    archive = _write(tmp_path / "a.tar", engine_files("podman", {"files.img": unknown_field}))
    assert [one.watch.path for one in read_dumped(archive).watches] == [b"/a"]
    _write(archive, engine_files("podman", {"files.img": more}))
    assert "not a protobuf message" in _refused(archive)
    other = b"\x19\x43\x56\x54\x01\x02\x03\x04" + known[8:]
    _write(archive, engine_files("podman", {"files.img": other}))
    assert "a CRIU image of unknown kind 0x4030201" in _refused(archive)


# --- sparse and large members ---------------------------------------------------------------------


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


# --- the output -----------------------------------------------------------------------------------


_EVIL = "\x1b[31mRED\n\u202e\udce9"


def test_names_of_an_archive_cannot_play_with_the_terminal(tmp_path: Path) -> None:
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
    config = archives.config_dump(
        name=_EVIL, rootfsImageName=_EVIL, runtime=_EVIL, namedVolumes=volumes
    )
    files = engine_files("podman", images, mounts=mounts) | {
        "config.dump": config,
        f"volumes/{volume}.tar": tar_of({"b": b"x"}),
    }
    archive = _write(tmp_path / "a.tar", files)
    for words in (["show", archive], ["check", "--images", archive], ["diff", archive, archive]):
        done = irmapdb(*words)
        assert done.code in {0, 3}
        assert all(line.isprintable() for line in done.said.splitlines())
        assert irmapdb(*words, "--json").out.isascii()
    for name in (f"checkpoint/{_EVIL}/inventory.img", _EVIL):
        bad = _write(tmp_path / "b.tar", {name: INVENTORY, f"{name}/files.img": b"x"})
        done = irmapdb("show", bad)
        assert (done.code, done.out) == (1, "")
        assert done.err.removesuffix("\n").isprintable()


def test_half_a_surrogate_pair_in_a_name_is_no_crash(tmp_path: Path) -> None:
    """JSON can have it, and no encoding can."""
    half = "\ud800"
    config = archives.config_dump(
        name=half,
        rootfsImageName=half,
        runtime=half,
        namedVolumes=[{"volumeName": half, "dest": "/var/lib/db"}],
    )
    images = {"files.img": files_img([b"/var/lib/db/a"]), "mountpoints-1.img": mountpoints(MOUNTS)}
    files = engine_files("podman", images, mounts=SPEC_MOUNTS) | {"config.dump": config}
    archive = _write(tmp_path / "a.tar", files)
    for words in (["show", archive], ["check", "--images", archive], ["diff", archive, archive]):
        assert irmapdb(*words).code in {0, 3}


def test_the_name_of_a_volume_leads_to_no_file_elsewhere(tmp_path: Path) -> None:
    """Of a checkpoint that was unpacked, `volumes/NAME.tar` is a path."""
    name = "../../secret"
    config = archives.config_dump(namedVolumes=[{"volumeName": name, "dest": "/var/lib/db"}])
    images = {"files.img": files_img([b"/var/lib/db/a"]), "mountpoints-1.img": mountpoints(MOUNTS)}
    files = engine_files("podman", images, mounts=SPEC_MOUNTS) | {"config.dump": config}
    unpacked = _unpack(_write(tmp_path / "a.tar", files), tmp_path / "unpacked")
    (unpacked / "volumes").mkdir()
    (tmp_path / "secret.tar").write_bytes(tar_of({"a": b"x"}))
    (found,) = read_dumped(unpacked).watches
    assert found.kind is OriginKind.BIND


def test_a_long_name_is_not_kept(tmp_path: Path) -> None:
    """A name may have 1 MiB, and many members may have one."""
    links = []
    for number in range(3):
        link = tarfile.TarInfo(f"{number}{'a' * 100_000}/files.img")
        link.type, link.linkname = tarfile.SYMTYPE, "x"
        links.append((link, b""))
    path = tmp_path / "a.tar"
    path.write_bytes(_tar_with(*links))
    kept = layout._Kept("a")
    for one in walk(path):
        kept.take(one)
    assert not kept.links


def test_a_terminal_of_80_columns_is_wide_enough(tmp_path: Path) -> None:
    archive = _write(tmp_path / "a.tar", _whole("cri-o"))
    for words in (["show"], ["check", "--images"]):
        code, said = at_terminal(
            *words, str(archive), cwd=tmp_path, environment={"COLUMNS": "80", "NO_COLOR": "1"}
        )
        assert code in {0, 3}
        lines = said.decode().splitlines()
        assert max(map(text_width, lines)) <= 80
        (row,) = (line for line in lines if "/var/lib/db/row" in line)
        assert "volume" in row
        # The source of a bind mount, that the target host must have.
        assert any("/srv/caf\\xe9" in line for line in lines)


def test_other_images_are_told_from_an_archive(tmp_path: Path) -> None:
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
