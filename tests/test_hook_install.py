"""The hook's line in the configuration files of CRIU and the engines: install and uninstall."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irmapdb.criu import config_files
from irmapdb.criu.config_files import ChangeKind, Runtime
from irmapdb.errors import FileError
from tests.support.hook import make_executable

LINES = st.lists(
    st.one_of(
        st.binary(max_size=20).filter(lambda line: b"\n" not in line and b"irmapdb" not in line),
        st.sampled_from([b"", b"# comment", b"tcp-established", b"action-script /usr/bin/other"]),
    ),
    max_size=6,
)


@given(lines=LINES)
def test_install_and_uninstall_give_every_byte_back(lines, tmp_path_factory):
    directory = tmp_path_factory.mktemp("criu")
    program = make_executable(directory)
    file = directory / "runc.conf"
    before = b"\n".join(lines)
    file.write_bytes(before)
    file.chmod(0o640)
    (done,) = config_files.install(Runtime.RUNC, program, directory)
    assert done.did is ChangeKind.ADDED
    line = b"action-script %b # for runc" % os.fsencode(program)
    assert file.read_bytes().split(b"\n").count(line) == 1
    assert file.read_bytes().replace(line, b"").split() == before.split()
    assert file.stat().st_mode & 0o777 == 0o640

    (done,) = config_files.install(Runtime.RUNC, program, directory)
    assert done.did is ChangeKind.KEPT
    (done,) = config_files.uninstall(Runtime.RUNC, None, directory)
    assert done.did is ChangeKind.REMOVED
    assert file.read_bytes() == before
    (done,) = config_files.uninstall(Runtime.RUNC, None, directory)
    assert done.did is ChangeKind.NOTHING


def test_files_and_directory_that_it_made_are_removed(tmp_path):
    program, directory = make_executable(tmp_path), tmp_path / "etc" / "criu"
    directory.parent.mkdir()
    for runtime in Runtime:
        (done,) = config_files.install(runtime, program, directory)
        assert done.did is ChangeKind.MADE
        (done,) = config_files.uninstall(runtime, None, directory)
        assert done.did is ChangeKind.UNMADE
        assert not directory.exists()
    # Lines that others have written into such a file meanwhile stay.
    config_files.install(Runtime.CRIU, program, directory)
    with (directory / "default.conf").open("a") as file:
        file.write("tcp-close\n")
    config_files.uninstall(Runtime.CRIU, None, directory)
    assert (directory / "default.conf").read_text() == "tcp-close\n"


def test_a_file_of_our_line_alone_gets_empty(tmp_path):
    file = tmp_path / "default.conf"
    file.write_text("action-script /usr/bin/irmapdb-hook")
    (done,) = config_files.uninstall(Runtime.CRIU, None, tmp_path)
    assert done == (file, ChangeKind.REMOVED, (), (Path("/usr/bin/irmapdb-hook"),))
    assert file.read_bytes() == b""


def test_each_runtime_has_its_file(tmp_path):
    def names(runtime):
        return [file.name for file in config_files.of_runtime(runtime, tmp_path)]

    assert names(Runtime.CRIU) == ["default.conf"]
    assert names(Runtime.CRUN) == ["crun.conf"]
    assert names(Runtime.PODMAN) == ["runc.conf"]
    (tmp_path / "runc.conf").touch()
    # A new crun.conf would hide it from crun.
    assert names(Runtime.CRUN) == ["runc.conf"]
    (tmp_path / "crun.conf").touch()
    assert names(Runtime.CRUN) == ["crun.conf"]
    assert names(Runtime.RUNC) == ["runc.conf"]
    assert names(Runtime.PODMAN) == ["runc.conf", "crun.conf"]


def test_line_of_another_irmapdb_hook_is_replaced(tmp_path):
    program, file = make_executable(tmp_path), tmp_path / "runc.conf"
    old = '  action-script "/old/bin/irmapdb-hook" # ours\n'
    file.write_text(f"link-remap\n{old}action-script /usr/bin/other\n{old}tcp-close")
    (done,) = config_files.install(Runtime.RUNC, program, tmp_path)
    assert done == (file, ChangeKind.REPLACED, ("/usr/bin/other",), ())
    assert file.read_text() == (
        f"link-remap\naction-script {program} # for runc\naction-script /usr/bin/other\ntcp-close"
    )


def test_two_runtimes_share_a_file(tmp_path):
    # podman reads runc's file. Each --uninstall takes out what its own --install put in.
    program, file = make_executable(tmp_path), tmp_path / "runc.conf"
    file.write_text("tcp-close\n")
    for installed in ((Runtime.RUNC, Runtime.PODMAN), (Runtime.PODMAN, Runtime.RUNC)):
        for runtime in installed:
            config_files.install(runtime, program, tmp_path)
        assert file.read_text() == f"tcp-close\naction-script {program} # for podman runc\n"
        (done,) = config_files.install(Runtime.RUNC, program, tmp_path)
        assert done.did is ChangeKind.KEPT
        (done,) = config_files.uninstall(Runtime.PODMAN, None, tmp_path)
        assert (done.did, done.removed_scripts) == (ChangeKind.SHARED, ())
        assert file.read_text() == f"tcp-close\naction-script {program} # for runc\n"
        (done,) = config_files.uninstall(Runtime.PODMAN, None, tmp_path)
        assert done.did is ChangeKind.SHARED
        (done,) = config_files.uninstall(Runtime.RUNC, None, tmp_path)
        assert (done.did, done.removed_scripts) == (ChangeKind.REMOVED, (program,))
        assert file.read_text() == "tcp-close\n"


def test_two_runtimes_share_a_new_file(tmp_path):
    program, directory = make_executable(tmp_path), tmp_path / "criu"
    for runtime in (Runtime.CRUN, Runtime.RUNC, Runtime.PODMAN):
        config_files.install(runtime, program, directory)
    # crun got a file of its own, as there was no runc.conf then.
    config_files.uninstall(Runtime.RUNC, None, directory)
    config_files.uninstall(Runtime.CRUN, None, directory)
    assert sorted(file.name for file in directory.iterdir()) == ["crun.conf", "runc.conf"]
    config_files.uninstall(Runtime.PODMAN, None, directory)
    assert not directory.exists()


def test_a_script_that_criu_cannot_execute_is_refused(tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("#!/bin/sh\n")
    failing = make_executable(tmp_path, "failing")
    failing.write_text("#!/bin/sh\nexit 3\n")
    nowhere = make_executable(tmp_path, "nowhere")
    nowhere.write_text("#!/no/such/interpreter\n")
    public = make_executable(tmp_path, "public")
    public.chmod(0o777)
    for program, why in (
        (plain, "not an executable file"),
        (tmp_path, "not an executable file"),
        (tmp_path / "missing", "No such file"),
        (failing, "exit code 3"),
        (nowhere, "cannot be executed"),
        (public, "every user may write it"),
        (make_executable(tmp_path, "with space"), "no path that"),
        (make_executable(tmp_path, "with#"), "no path that"),
    ):
        with pytest.raises(FileError, match=why):
            config_files.install(Runtime.RUNC, program, tmp_path / "criu")
    assert not (tmp_path / "criu").exists()
