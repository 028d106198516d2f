"""The containers for which `check --all` expects that CRIU calls the hook."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from irmapdb.criu import engines
from irmapdb.node import check_all
from irmapdb.node.check_all import NodeCheckOptions
from irmapdb.node.container_info import ContainerInfo
from irmapdb.node.criu_annotations import AnnotatedContainer
from tests.support.silent_fuse import SilentFuse

if TYPE_CHECKING:
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
    monkeypatch.setattr(check_all, "annotated_containers", lambda _root: annotated)
    ids = ("own", "none", "absent", "plain", "default/own")
    assert [id_ for id_ in ids if _hooked("runc", tmp_path, id_)] == ["own", "plain", "default/own"]
    (tmp_path / "default.conf").write_text(LINE)
    assert all(_hooked("runc", tmp_path, id_) for id_ in ids)


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
    monkeypatch.setattr(check_all, "annotated_containers", lambda _root: annotated)
    with SilentFuse(mountpoint) as fuse:
        fuse.silent = True
        is_hooked = check_all._hooks(NodeCheckOptions(criu_dir=tmp_path))
        assert fuse.asked.is_set()
    ids = ("own", "good", "other")
    infos = (ContainerInfo(id_, None, None, None, "runc", f"/{id_}") for id_ in ids)
    assert [is_hooked(info, None) for info in infos] == [False, True, True]
