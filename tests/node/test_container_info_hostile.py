"""Files of the engines that are damaged, or that a tenant wrote: they give no name."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from irmapdb.errors import TaskError
from irmapdb.node.container_info import find_named
from tests.support import engine_host
from tests.support.engine_host import CRI, FILES, HEX, MONITOR, OTHER, PID, RUN, TASKS, Host

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def _half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def _huge(file: Path) -> None:
    with file.open("ab") as opened:
        opened.truncate(1 << 30)  # zeros are no JSON, but nothing may read them


def _deep(file: Path) -> None:
    file.write_text("[" * 500_000)


def _other_types(file: Path) -> None:
    file.write_text(
        '{"Name": 3, "State": 5, "Config": [], "annotations": "x", "id": [], "config": 7,'
        ' "init_process_pid": true}'
    )


def _list_of_anything(file: Path) -> None:
    file.write_text('[1, null, [], {"id": 2}, {"id": "x", "names": {}, "metadata": [1]}]')


def _fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _link(file: Path) -> None:
    file.rename(file.with_name("elsewhere"))
    file.symlink_to("elsewhere")


def _of_another_user(file: Path) -> None:
    os.chown(file, 12345, 12345)


def _writable_by_others(file: Path) -> None:
    file.chmod(0o666)


def _in_a_directory_of_another_user(file: Path) -> None:
    os.chown(file.parent, 12345, 12345)


def _in_a_directory_that_others_write(file: Path) -> None:
    file.parent.chmod(0o777)


def _through_a_link_of_another_user(file: Path) -> None:
    place = file.parent.parent
    moved = place.with_name("moved")
    place.rename(moved)
    place.symlink_to(moved)
    os.lchown(place, 12345, 12345)
    place.parent.chmod(0o1777)  # as /tmp, where each user can make such a link


@pytest.mark.parametrize("make", FILES, ids=lambda make: make.__name__)
@pytest.mark.parametrize(
    "spoil",
    [
        _half,
        _huge,
        _deep,
        _other_types,
        _list_of_anything,
        _fifo,
        _link,
        _of_another_user,
        _writable_by_others,
        _in_a_directory_of_another_user,
        _in_a_directory_that_others_write,
        _through_a_link_of_another_user,
        os.unlink,
    ],
    ids=lambda spoil: spoil.__name__.strip("_"),
)
@pytest.mark.timeout(20)  # a FIFO must not be waited for
def test_a_file_that_cannot_be_trusted_gives_no_name(
    host: Host, make: Callable[[Host], None], spoil: Callable[[Path], None]
) -> None:
    make(host)
    before = host.info()
    assert before.name is not None
    spoil(host.root / FILES[make])
    after = host.info()
    assert (after.id, after.cgroup) == (before.id, before.cgroup)
    assert (after.name, after.image, after.pod) == (None, None, None)


ODD = (None, True, -1, 1 << 80, 0.5, "", "x", "\ud800", "a/b", "..", [], {}, [None], {"x": []})


def _variants(document: Any) -> Iterator[Any]:
    """The document with one part of it replaced, for each part and each odd value."""
    yield from ODD
    items = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in items:
        copy = document.copy()
        for odd in _variants(value) if isinstance(value, dict | list) else ODD:
            copy[key] = odd
            yield copy


@pytest.mark.parametrize("make", FILES, ids=lambda make: make.__name__)
def test_no_document_is_an_error(host: Host, make: Callable[[Host], None]) -> None:
    make(host)
    before = host.info()
    path = host.root / FILES[make]
    for variant in _variants(json.loads(path.read_text())):
        path.write_text(json.dumps(variant))
        info = host.info()
        assert (info.id, info.cgroup) == (before.id, before.cgroup)
        texts = (info.name, info.image, info.pod)
        assert all(one is None or one.encode() for one in texts)
        assert info.label


@pytest.mark.parametrize(
    ("make", "file"),
    [
        (engine_host.docker, FILES[engine_host.docker]),
        (engine_host.podman_without_conmon, f"{RUN}/{HEX}/userdata/pidfile"[1:]),
        (engine_host.containerd_pod, f"{TASKS}/k8s.io/{HEX}/init.pid"[1:]),
        (engine_host.runc, FILES[engine_host.runc]),
    ],
)
def test_a_file_about_another_task_gives_no_name(
    host: Host, make: Callable[[Host], None], file: str
) -> None:
    """A user can make a cgroup with the id of another container, and old files can be left."""
    make(host)
    path = host.root / file
    path.write_text(path.read_text().replace(str(PID), "201"))
    assert host.info()[1:4] == (None, None, None)


def test_a_monitor_that_another_user_runs_does_not_count(host: Host) -> None:
    engine_host.podman(host)
    os.chown(host.proc / str(MONITOR), 12345, 12345)
    assert host.info().name is None


def test_a_monitor_of_another_container_does_not_count(host: Host) -> None:
    engine_host.podman(host)
    words = ("conmon", "-c", OTHER, "-b", f"/srv/store/overlay-containers/{OTHER}/userdata", "")
    (host.proc / str(MONITOR) / "cmdline").write_bytes("\0".join(words).encode())
    assert host.info().name is None


def test_the_fields_of_the_engine_precede_labels_of_the_user(host: Host) -> None:
    engine_host.containerd_pod(host)
    lies = {"io.kubernetes.pod.name": "db-0", "io.kubernetes.pod.namespace": "prod"}
    lies["io.kubernetes.container.name"] = "db"
    host.write(f"{TASKS}/k8s.io/{HEX}/config.json", {"annotations": {**lies, **CRI}})
    assert host.info()[1:4] == ("app", "registry.example/app:3", "shop/web-1")


@pytest.mark.parametrize("make", ["crio", "crio_sandbox", "containerd_pod", "docker_pod"])
def test_annotations_of_another_engine_do_not_count(host: Host, make: str) -> None:
    """The rows of the fleet are shown by the namespace."""
    lies = {
        "io.kubernetes.cri.sandbox-name": "dns",
        "io.kubernetes.cri.sandbox-namespace": "kube-system",
        "io.kubernetes.cri.container-name": "dns",
        "io.kubernetes.cri.image-name": "dns",
        "io.kubernetes.cri-o.KubeName": "dns",
        "io.kubernetes.cri-o.Namespace": "kube-system",
        "io.kubernetes.cri-o.ImageName": "dns",
    }
    getattr(engine_host, make)(host)
    honest = host.info()
    for file in (*host.root.rglob("config.json"), *host.root.rglob("config.v2.json")):
        document = json.loads(file.read_text())
        said = document["Config"]["Labels"] if "Config" in document else document["annotations"]
        own = {"crio": "cri-o.", "containerd": "cri."}.get(make.partition("_")[0], "none")
        said |= {
            key: one for key, one in lies.items() if not key.startswith(f"io.kubernetes.{own}")
        }
        file.write_text(json.dumps(document))
    assert honest.pod == "shop/web-1"
    assert host.info() == honest


def test_a_monitor_in_a_container_does_not_count(host: Host) -> None:
    """There root's user id is a tenant's, and a program may be called conmon."""
    engine_host.podman(host)
    assert host.info().name == "web"
    status = host.proc / str(MONITOR) / "status"
    status.write_text(f"Name:\tconmon\nNSpid:\t{MONITOR}\t7\n")
    assert host.info().name is None


@pytest.mark.parametrize(
    "name", ["\x1b[2Jweb", "we\nb", "\u202eweb", "caf\u00e9", "\ud800", "../x"]
)
def test_a_name_may_have_any_character(host: Host, name: str) -> None:
    engine_host.docker(host)
    path = host.root / FILES[engine_host.docker]
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "Name": f"/{name}"}))
    found = host.info().name
    assert found == name.encode("utf-8", "replace").decode()
    with pytest.raises(TaskError) as raised:
        find_named("other", [host.info(), host.info()])
    assert str(raised.value).isprintable()


def test_a_name_that_is_too_long_does_not_count(host: Host) -> None:
    engine_host.docker(host)
    path = host.root / FILES[engine_host.docker]
    path.write_text(path.read_text().replace("/web", "/" + "w" * 100_000))
    assert host.info()[1:3] == (None, "nginx:1.27")
