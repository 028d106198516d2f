"""Archives of checkpoints: the layouts of the engines, and the source of each path."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

import pytest

from irmapdb.archive import layout
from irmapdb.archive.dumped import read_dumped
from irmapdb.archive.origins import OriginKind, _Mounts
from irmapdb.criu.check.restore import RestoreVerdict, check_images
from irmapdb.errors import FileError
from irmapdb.image.mounts import DumpedMount
from tests.support.archives import (
    ENGINES,
    INVENTORY,
    engine_files,
    files_img,
    mountpoints,
    pack,
    tar_of,
)
from tests.support.whole_archive import (
    DATA,
    FORMS,
    MOUNTS,
    PATHS,
    TMPFS,
    tar_with,
    unpack,
    whole,
    write,
)


@pytest.mark.parametrize("small_bytes", [0, 2048, 1 << 20])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("engine", ENGINES)
def test_each_path_and_its_origin(
    engine: str, form: str, small_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Archives inside that are larger are looked for in a second pass.
    monkeypatch.setattr(layout, "_SMALL_BYTES", small_bytes)
    archive = write(tmp_path / "name.means.nothing", whole(engine), form)
    dumped = read_dumped(archive)
    told = {one.watch.path: (one.kind, one.where) for one in dumped.watches}
    assert told == PATHS
    assert (dumped.container.engine, dumped.container.name) == (engine, "web")
    assert dumped.container.image == "docker.io/library/nginx:latest"
    assert dumped.container.pod == ("" if engine == "podman" else "shop/web-0")
    assert dumped.container.criu_version == ("4.1.1" if engine == "cri-o" else "")


@pytest.mark.parametrize("order", ["reversed", "sorted"])
def test_the_order_of_the_members_does_not_matter(order: str, tmp_path: Path) -> None:
    files = whole("podman")
    names = sorted(files) if order == "sorted" else [*files][::-1]
    archive = write(tmp_path / "a.tar", {name: files[name] for name in names}, "gzip")
    told = {one.watch.path: (one.kind, one.where) for one in read_dumped(archive).watches}
    assert told == PATHS


def test_an_unpacked_archive_is_the_same(tmp_path: Path) -> None:
    archive = write(tmp_path / "a.tar", whole("podman"))
    directory = unpack(archive, tmp_path / "unpacked")
    expected = read_dumped(archive)
    for named in (directory, directory / "checkpoint"):
        found = read_dumped(named)
        assert found.watches == expected.watches
        assert found.container == expected.container


def test_a_layer_and_an_image_that_holds_it(tmp_path: Path) -> None:
    layer = tar_of(whole("podman"))
    digest = "ab" * 32
    rest = {"oci-layout": b"{}", "index.json": b"{}", "blobs/sha256/cd": b'{"config": 1}'}
    for number, form in enumerate(FORMS):
        for name in (f"blobs/sha256/{digest}", f"{digest}/layer.tar", f"{digest}.tar"):
            blob = {name: pack(layer, form)}
            archive = write(tmp_path / f"{number}.tar", {**rest, **blob}, "gzip")
            told = {one.watch.path: (one.kind, one.where) for one in read_dumped(archive).watches}
            assert told == PATHS


def test_the_directory_of_an_image_is_to_be_packed(tmp_path: Path) -> None:
    blob = pack(tar_of(whole("podman")), "gzip")
    files = {"oci-layout": b"{}", "index.json": b"{}", f"blobs/sha256/{'ab' * 32}": blob}
    directory = unpack(write(tmp_path / "image.tar", files), tmp_path / "image")
    with pytest.raises(FileError, match="of an image") as caught:
        read_dumped(directory)
    command = caught.value.advice.partition(": ")[2]
    assert command == f"tar -C {directory} -cf FILE ."
    packed = tmp_path / "packed.tar"
    subprocess.run(command.replace("FILE", str(packed)).split(), check=True)
    assert {one.watch.path for one in read_dumped(packed).watches} == {*PATHS}


@pytest.mark.parametrize("top", ["", "img/", "./", "./img/"])
def test_an_images_dir_that_was_packed(top: str, tmp_path: Path) -> None:
    files = {f"{top}files.img": files_img([b"/no-such-file"]), f"{top}inventory.img": INVENTORY}
    report = check_images(write(tmp_path / "a.tar", files), None)
    assert report.root == Path("/")
    (one,) = report.watches
    assert (one.verdict, one.kind) == (RestoreVerdict.MISSING, OriginKind.ROOT)
    assert report.container.engine == ""


def test_an_image_with_a_root_is_no_checkpoint_beside_it(tmp_path: Path) -> None:
    """`ctr images export` can have the layers of the image too, with any files in them."""
    root = {f"var/lib/dpkg/{name}": bytes(5 << 20) for name in ("status", "spec.dump")}
    root |= {"usr/share/doc/criu/files.img": b"x", "usr/share/doc/criu/inventory.img": b"x"}
    blobs = {
        "blobs/sha256/aa": pack(tar_of(root), "gzip"),
        "blobs/sha256/bb": tar_of({"files.img": files_img([b"/a"]), "inventory.img": INVENTORY}),
    }
    dumped = read_dumped(write(tmp_path / "a.tar", blobs))
    assert [one.watch.path for one in dumped.watches] == [b"/a"]
    assert dumped.container.engine == "containerd"


def test_verdicts_with_and_without_a_root(tmp_path: Path) -> None:
    archive = write(tmp_path / "a.tar", whole("podman"), "zstd")
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
        (one,) = check_images(write(tmp_path / "a.tar", files), None).watches
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


@pytest.mark.parametrize("dot", ["./", ""])
def test_a_name_with_a_dot_and_a_link_in_an_archive_inside(dot: str, tmp_path: Path) -> None:
    watched = {
        b"/.env": ("rootfs-diff.tar", RestoreVerdict.BROUGHT),
        b"/srv/link": ("rootfs-diff.tar", RestoreVerdict.LINKED),
        b"/tmp/.inside": (f"tmpfs-dev-{TMPFS}.tar.gz.img", RestoreVerdict.BROUGHT),
        b"/tmp/link": (f"tmpfs-dev-{TMPFS}.tar.gz.img", RestoreVerdict.LINKED),
        b"/var/lib/db/..row": ("volumes/db.tar", RestoreVerdict.BROUGHT),
        b"/var/lib/db/link": ("volumes/db.tar", RestoreVerdict.LINKED),
    }
    link = tarfile.TarInfo(f"{dot}link")
    link.type, link.linkname = tarfile.SYMTYPE, "row"
    deep = tarfile.TarInfo(f"{dot}srv/link")
    deep.type, deep.linkname = tarfile.SYMTYPE, "row"

    def made(name: str, one: tarfile.TarInfo) -> bytes:
        return tar_with((tarfile.TarInfo(f"{dot}{name}"), b"x"), (one, b""))

    files = whole("podman") | {
        "checkpoint/files.img": files_img(watched),
        f"checkpoint/tmpfs-dev-{TMPFS}.tar.gz.img": pack(made(".inside", link), "gzip"),
        "rootfs-diff.tar": made(".env", deep),
        "volumes/db.tar": made("..row", link),
    }
    report = check_images(write(tmp_path / "a.tar", files), None)
    found = {one.watch.path: (one.origin, one.verdict) for one in report.watches}
    assert found == watched
    assert [one.watch.path for one in report.watches if one.right] == [
        path for path, (_, verdict) in watched.items() if verdict is RestoreVerdict.BROUGHT
    ]


def test_a_link_on_a_bind_mount(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    images = {"files.img": files_img([b"/data/link"]), "mountpoints-1.img": mountpoints(MOUNTS)}
    mounts = [{"destination": "/data", "source": str(tmp_path), "type": "bind"}]
    files = engine_files("podman", images, mounts=mounts)
    (one,) = check_images(write(tmp_path / "a.tar", files), None).watches
    assert (one.verdict, one.kind, one.right) == (RestoreVerdict.LINKED, OriginKind.BIND, False)


def test_what_is_below_a_removed_directory(tmp_path: Path) -> None:
    files = whole("podman") | {"deleted.files": b'["/etc", "/var/lib", "/nowhere"]'}
    report = check_images(write(tmp_path / "a.tar", files), None)
    missing = {one.watch.path for one in report.watches if one.origin == "" and not one.right}
    # A mount is there after the removal; files in `etc` are not, new ones neither.
    assert {b"/etc/nginx", b"/etc/changed", b"/etc/gone"} <= missing
    assert not {b"/etc/hosts", b"/var/lib/db/row"} & missing
    files = whole("podman") | {"deleted.files": b'["/et", "/etc/nginx/conf", "/", ""]'}
    report = check_images(write(tmp_path / "a.tar", files), None)
    verdicts = {one.watch.path: one.verdict for one in report.watches}
    assert verdicts[b"/etc/nginx"] is RestoreVerdict.IMAGE
    assert verdicts[b"/etc/changed"] is RestoreVerdict.BROUGHT


_SANDBOX = "5f0c" * 16


@pytest.mark.parametrize(
    ("engine", "source"),
    [
        ("cri-o", "/var/lib/kubelet/pods/uid/volumes/config"),
        ("containerd", "/var/lib/kubelet/pods/uid/volumes/config"),
        ("cri-o", f"/run/containers/storage/overlay-containers/{_SANDBOX}/userdata/resolv.conf"),
        (
            "containerd",
            f"/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/{_SANDBOX}/resolv.conf",
        ),
        ("podman", f"/run/containers/storage/vfs-containers/{_SANDBOX}/userdata/hosts"),
        ("podman", f"/var/lib/docker/containers/{_SANDBOX}/hosts"),
    ],
)
def test_what_the_engine_makes_for_each_pod(engine: str, source: str, tmp_path: Path) -> None:
    images = {"files.img": files_img([b"/data/file"]), "mountpoints-1.img": mountpoints(MOUNTS)}
    mounts = [{"destination": "/data", "source": source, "type": "bind"}]
    files = engine_files(engine, images, mounts=mounts)
    report = check_images(write(tmp_path / "a.tar", files), None)
    (one,) = report.watches
    assert (one.verdict, one.kind) == (RestoreVerdict.BROUGHT, OriginKind.ENGINE)
    assert report.right


def test_a_directory_whose_name_looks_like_that_of_an_engine(tmp_path: Path) -> None:
    images = {"files.img": files_img([b"/data/file"]), "mountpoints-1.img": mountpoints(MOUNTS)}
    for source in (f"/srv/volumes/{_SANDBOX}/_data", "/srv/containers/web/data"):
        mounts = [{"destination": "/data", "source": source, "type": "bind"}]
        files = engine_files("podman", images, mounts=mounts)
        (one,) = check_images(write(tmp_path / "a.tar", files), None).watches
        assert (one.kind, one.mount_source) == (OriginKind.BIND, source.encode())


@pytest.mark.parametrize("engine", ENGINES)
def test_the_engines_of_kubernetes_make_a_source(engine: str, tmp_path: Path) -> None:
    images = {
        "files.img": files_img([b"/data", b"/data/file"]),
        "mountpoints-1.img": mountpoints(MOUNTS),
    }
    source = str(tmp_path / "no-such-source")
    mounts = [{"destination": "/data", "source": source, "type": "bind"}]
    files = engine_files(engine, images, mounts=mounts)
    archive = write(tmp_path / "a.tar", files)
    report = check_images(archive, None)
    top, below = report.watches
    assert below.verdict is RestoreVerdict.MISSING
    assert top.right is (engine != "podman")
    assert {one.mount_source for one in report.watches} == {source.encode()}
    files["checkpoint/files.img"] = files_img([b"/etc/nginx"])
    report = check_images(write(archive, files), None)
    assert [one.right for one in report.watches] == [True]
    assert report.right is (engine != "podman")
    assert bool(report.problems) is (engine == "podman")


def test_a_mount_whose_destination_is_below_a_link(tmp_path: Path) -> None:
    def kinds(*destinations: str) -> set[tuple[OriginKind | None, bytes | None]]:
        mounts = [
            {"destination": one, "source": f"/srv{number}/", "type": "bind"}
            for number, one in enumerate(destinations)
        ]
        files = engine_files("podman", images, mounts=mounts)
        watches = check_images(write(tmp_path / "a.tar", files), None).watches
        return {(one.kind, one.mount_source) for one in watches}

    images = {
        "files.img": files_img([b"/run/data/file"]),
        "mountpoints-1.img": mountpoints({b"/run/data": DATA}),
    }
    assert kinds("/var/run/data") == {(OriginKind.BIND, b"/srv0/")}
    assert kinds("/var/run/data", "/var/run/other") == {(OriginKind.BIND, b"/srv0/")}
    # Two that it may be, and none.
    assert kinds("/var/run/data", "/lnk/data") == {(OriginKind.MOUNT, None)}
    assert kinds("/var/run/other") == {(OriginKind.MOUNT, None)}


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
