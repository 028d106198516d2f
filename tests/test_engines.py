"""The engines of a machine: the runtime that each is configured for, and the files of CRIU."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from irmapdb.criu import engines
from irmapdb.criu.engines import Engine, find_engines

_CRI = '[plugins."io.containerd.grpc.v1.cri".containerd]\n'
_CRI_2 = "[plugins.'io.containerd.cri.v1.runtime'.containerd]\n"


def _engine(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    programs: tuple[str, ...] = ("runc", "crun"),
    said: str = "version 1.2.3",
) -> Engine:
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (program,) = engines._PROGRAMS[name]
    for one in (program, *programs):
        (bin_ / one).write_text(f"#!/bin/sh\n[ $# = 1 ] && [ $1 = --version ] && echo '{said}'\n")
        (bin_ / one).chmod(0o755)
    real = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, **_: real(name, path=str(bin_)))
    monkeypatch.setattr(engines, "why_not_read", lambda: "")
    found = find_engines(tmp_path / "criu", tmp_path / "root")
    return next(one for one in found if one.name == name)


def _write(tmp_path: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        file = tmp_path / "root" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


@pytest.mark.parametrize(
    ("name", "files", "runtime"),
    [
        ("podman", {}, "crun"),
        ("podman", {"etc/containers/containers.conf": '[engine]\nruntime = "runc"\n'}, "runc"),
        (
            "podman",
            {
                "usr/share/containers/containers.conf": '[engine]\nruntime = "crun"\n',
                "etc/containers/containers.conf.d/a.conf": '[engine]\nruntime = "/opt/runc"\n',
            },
            "runc",
        ),
        ("podman", {"etc/containers/containers.conf": "[engine\n"}, "crun"),
        ("podman", {"etc/containers/containers.conf": "engine = 3\n"}, "crun"),
        ("cri-o", {}, "runc"),
        ("cri-o", {"etc/crio/crio.conf": '[crio.runtime]\ndefault_runtime = "crun"\n'}, "crun"),
        (
            "cri-o",
            {
                "etc/crio/crio.conf": '[crio.runtime]\ndefault_runtime = "fast"\n',
                "etc/crio/crio.conf.d/1.conf": "[crio.runtime.runtimes.fast]\n"
                'runtime_path = "/usr/bin/crun"\n',
            },
            "crun",
        ),
        ("containerd", {}, "runc"),
        ("containerd", {"etc/containerd/config.toml": "version = 2\n"}, "runc"),
        (
            "containerd",
            {
                "etc/containerd/config.toml": f'{_CRI}default_runtime_name = "c"\n'
                '[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.c.options]\n'
                'BinaryName = "/usr/bin/crun"\n'
            },
            "crun",
        ),
        (
            "containerd",
            {"etc/containerd/config.toml": f'{_CRI_2}default_runtime_name = "kata"\n'},
            "kata",
        ),
        ("docker", {}, "runc"),
        ("docker", {"etc/docker/daemon.json": '{"default-runtime": "crun"}'}, "crun"),
        (
            "docker",
            {
                "etc/docker/daemon.json": '{"default-runtime": "x",'
                ' "runtimes": {"x": {"path": "/usr/bin/crun"}}}'
            },
            "crun",
        ),
        ("docker", {"etc/docker/daemon.json": '{"default-runtime": ["crun"'}, "runc"),
        ("docker", {"etc/docker/daemon.json": "[" * 100_000}, "runc"),
    ],
)
def test_the_runtime_is_that_of_the_configuration(tmp_path, monkeypatch, name, files, runtime):
    _write(tmp_path, files)
    found = _engine(name, tmp_path, monkeypatch)
    assert (found.runtime, found.version) == (runtime, "1.2.3")
    read = [] if runtime == "kata" else ["default.conf", f"{runtime}.conf"]
    assert [file.name for file in found.files] == read


def test_podman_without_crun_uses_runc(tmp_path, monkeypatch):
    assert _engine("podman", tmp_path, monkeypatch, programs=("runc",)).runtime == "runc"


def test_crun_reads_the_file_of_runc_if_only_that_is_there(tmp_path, monkeypatch):
    (tmp_path / "criu").mkdir()
    (tmp_path / "criu" / "runc.conf").touch()
    found = _engine("crun", tmp_path, monkeypatch)
    assert [file.name for file in found.files] == ["default.conf", "runc.conf"]


def test_a_file_that_is_not_read_does_not_count(tmp_path, monkeypatch):
    found = _engine("crun", tmp_path, monkeypatch)._replace(unread="too old")
    assert [file.name for file in found.read_files] == ["default.conf"]


@pytest.mark.parametrize("said", ["", "hello", "\x1b[2J 9"])
def test_a_program_that_prints_no_version(tmp_path, monkeypatch, said):
    assert _engine("runc", tmp_path, monkeypatch, said=said).version == ""


def test_a_program_that_hangs_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "_PATIENCE_S", 0.2)
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "runc").write_text("#!/bin/sh\nexec sleep 1000\n")
    (bin_ / "runc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}:/usr/bin:/bin")
    found = {one.name: one for one in find_engines(tmp_path / "criu", tmp_path)}
    assert found["runc"].version == ""
