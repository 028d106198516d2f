"""The containers for which `check --all` expects that CRIU calls the hook."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from irmapdb.criu import engines
from irmapdb.kernel.child_call import ask_in_child
from irmapdb.node import check_all
from irmapdb.node.check_all import NodeCheckOptions
from irmapdb.node.container_info import ContainerInfo
from irmapdb.node.criu_annotations import AnnotatedContainer, files_by_id
from tests.support.silent_fuse import SilentFuse

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

LINE = "action-script /usr/local/libexec/irmapdb/irmapdb-hook\n"
OTHER = "action-script /opt/other/script\n# action-script /opt/irmapdb-hook\n"


def _hooked(
    engine: str | None, directory: Path, id_: str = "c1", *, hook: bool | None = None
) -> bool:
    options = NodeCheckOptions(criu_dir=directory, hook=hook)
    info = ContainerInfo(id_, None, None, None, engine, f"/{id_}")
    return check_all._hooks(options)(info, None)


@pytest.mark.parametrize(
    ("files", "yes"),
    [
        ((), set()),
        (("default.conf",), {"runc", "crun", "containerd", "docker", "lxc", "criu", None}),
        (("runc.conf",), {"runc", "containerd", "docker", "crun", None}),
        (("crun.conf",), {"crun"}),
    ],
)
def test_by_the_files_that_criu_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: tuple[str, ...], yes: set[str | None]
) -> None:
    monkeypatch.setattr(engines, "why_not_read", lambda: "")
    monkeypatch.setattr(engines, "_configured", lambda _name, _root: "runc")
    for name in files:
        (tmp_path / name).write_text(LINE)
    every = ("runc", "crun", "containerd", "docker", "lxc", "criu", None)
    assert {engine for engine in every if _hooked(engine, tmp_path)} == yes
    assert _hooked("runc", tmp_path, hook=True)
    assert not _hooked("runc", tmp_path, hook=False)


def test_by_the_runtime_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """podman can start a container with another runtime than the configured one."""
    monkeypatch.setattr(engines, "why_not_read", lambda: "")
    monkeypatch.setattr(engines, "_configured", lambda _name, _root: "runc")
    (tmp_path / "crun.conf").write_text(LINE)
    is_hooked = check_all._hooks(NodeCheckOptions(criu_dir=tmp_path))
    info = ContainerInfo("c1", None, None, None, "podman", "/c1")
    assert [is_hooked(info, runtime) for runtime in ("crun", "runc", None)] == [True, False, False]


def test_not_by_the_line_of_another_script(tmp_path: Path) -> None:
    (tmp_path / "runc.conf").write_text(OTHER)
    assert not _hooked("runc", tmp_path)


def test_a_crun_that_reads_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "why_not_read", lambda: "too old")
    (tmp_path / "crun.conf").write_text(LINE)
    assert not _hooked("crun", tmp_path)


def test_the_annotation_of_a_container_names_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.conf").write_text(LINE)
    (tmp_path / "runc.conf").write_text(LINE)
    annotated = (
        AnnotatedContainer("own", str(tmp_path / "own.conf")),
        AnnotatedContainer("none", ""),
        AnnotatedContainer("absent", str(tmp_path / "absent.conf")),
    )
    monkeypatch.setattr(check_all, "files_by_id", lambda _root: _by_id(annotated))
    ids = ("own", "none", "absent", "plain", "default/own")
    assert [id_ for id_ in ids if _hooked("runc", tmp_path, id_)] == ["own", "plain", "default/own"]
    (tmp_path / "default.conf").write_text(LINE)
    assert all(_hooked("runc", tmp_path, id_) for id_ in ids)


def _by_id(annotated: Iterable[AnnotatedContainer]) -> dict[str, frozenset[str]]:
    return {one.id: frozenset({one.file}) for one in annotated}


def test_two_containers_with_one_id_are_not_called_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenant of another namespace of containerd can give its container any name."""
    criu, root = tmp_path / "criu", tmp_path / "root"
    criu.mkdir()
    (criu / "runc.conf").write_text(LINE)
    monkeypatch.setattr(check_all, "host_root", lambda: str(root))
    (root / "etc").mkdir(parents=True)
    (root / "etc/good.conf").write_text(LINE)
    chosen = {
        "k8s.io/web": None,
        "tenant/web": "",
        "k8s.io/db": None,
        "tenant/db": "/etc/good.conf",
    }
    for place, file in chosen.items():
        bundle = root / "run/containerd/io.containerd.runtime.v2.task" / place
        bundle.mkdir(parents=True)
        annotations = {} if file is None else {"org.criu.config": file}
        (bundle / "config.json").write_text(json.dumps({"annotations": annotations}))
    ids = ("web", "db", "other")
    assert [id_ for id_ in ids if _hooked("containerd", criu, id_)] == ["db", "other"]
    (criu / "runc.conf").write_text(OTHER)
    assert not any(_hooked("containerd", criu, id_) for id_ in ids)


def test_the_bundle_of_a_tenant_is_not_read(tmp_path: Path) -> None:
    """The tenant can change it after the start, and can serve it by FUSE."""
    root, bundle = tmp_path / "root", tmp_path / "bundle"
    bundle.mkdir()
    for runtime, file in {"crun": "status", "runc": "state.json"}.items():
        state = root / "run" / runtime / f"of-{runtime}"
        state.mkdir(parents=True)
        document = {"bundle": str(bundle), "config": {"labels": [f"bundle={bundle}"]}}
        (state / file).write_text(json.dumps(document))
    (root / "run/crun/of-crun/config.json").write_text("{}")
    with SilentFuse(bundle) as fuse:
        fuse.silent = True
        assert ask_in_child(lambda: files_by_id(root), str, 20) == {
            "of-crun": frozenset({None}),
            "of-runc": frozenset({None}),
        }


def test_the_file_of_an_annotation_may_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runc.conf").write_text(LINE)
    mountpoint = tmp_path / "fuse"
    mountpoint.mkdir()
    (tmp_path / "good.conf").write_text(LINE)
    annotated = (
        AnnotatedContainer("own", f"{mountpoint}/own.conf"),
        AnnotatedContainer("good", f"{tmp_path}/good.conf"),
    )
    monkeypatch.setattr(check_all, "files_by_id", lambda _root: _by_id(annotated))
    with SilentFuse(mountpoint) as fuse:
        fuse.silent = True
        is_hooked = check_all._hooks(NodeCheckOptions(criu_dir=tmp_path))
        assert fuse.asked.is_set()
    ids = ("own", "good", "other")
    infos = (ContainerInfo(id_, None, None, None, "runc", f"/{id_}") for id_ in ids)
    assert [is_hooked(info, None) for info in infos] == [False, True, True]
