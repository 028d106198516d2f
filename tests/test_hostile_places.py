"""Files of root's that a tenant's names could lead to, and reads that never end."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from time import monotonic

import pytest

from irmapdb import files
from irmapdb.config import Config, HookConfig
from irmapdb.criu import hook_job
from irmapdb.errors import FileError
from irmapdb.node.rundir import RunDirectory
from irmapdb.ownership import open_directory
from tests.support.features import require_root
from tests.support.hostile import TENANT, give_away, run_irmapdb
from tests.support.silent_fuse import SilentFuse

PAST_S = 1_000_000_000


@pytest.fixture
def tenant(tmp_path: Path) -> Path:
    """A directory of another user."""
    require_root()
    directory = tmp_path / "tenant"
    directory.mkdir()
    give_away(directory)
    return directory


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """A directory of root's, elsewhere."""
    directory = tmp_path / "ours"
    directory.mkdir(mode=0o700)
    return directory


def lead_to(directory: Path, link: Path) -> Path:
    link.symlink_to(directory)
    os.lchown(link, TENANT, TENANT)
    return link


def test_a_name_that_becomes_a_link_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    regular, fifo, name = tmp_path / "regular", tmp_path / "fifo", tmp_path / "irmap-cache"
    regular.write_bytes(b"whole")
    os.mkfifo(fifo)
    name.symlink_to(regular)
    opened = []
    look, take = os.stat, os.open

    def swap(path: object) -> None:
        if isinstance(path, bytes | str | Path) and os.fsencode(path) == os.fsencode(name):
            name.unlink()
            name.symlink_to(fifo)

    def stat_and_swap(path, *args, **kwargs):
        found = look(path, *args, **kwargs)
        swap(path)
        return found

    def open_and_swap(path, flags, *args, **kwargs):
        fd = take(path, flags, *args, **kwargs)
        if not flags & os.O_PATH and stat.S_ISFIFO(os.fstat(fd).st_mode):
            opened.append(path)
        swap(path)
        return fd

    monkeypatch.setattr(os, "stat", stat_and_swap)
    monkeypatch.setattr(os, "open", open_and_swap)
    assert files.read_whole(name, limit_bytes=100) == b"whole"
    assert not opened


def test_no_file_is_written_through_a_link_of_a_tenant(
    tenant: Path, ours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (ours / "irmap-cache").write_bytes(b"ours")
    link = lead_to(ours, tenant / "work")
    monkeypatch.chdir(tenant)
    for path in (link / "irmap-cache", Path("work/irmap-cache"), link / "new"):
        with pytest.raises(FileError, match="symbolic link of uid"):
            files.replace_whole(path, b"theirs")
        with pytest.raises(FileError, match="symbolic link of uid"):
            files.check_replaceable(path)
    with (
        pytest.raises(FileError, match="symbolic link of uid"),
        files.replaced([(link / "irmap-cache", b"theirs")]),
    ):
        raise AssertionError
    assert {one.name: one.read_bytes() for one in ours.iterdir()} == {"irmap-cache": b"ours"}
    # One to a directory of theirs goes on working; so does one of ours.
    own = tenant / "own"
    own.mkdir()
    give_away(own)
    files.replace_whole(lead_to(own, tenant / "short") / "new", b"x")
    assert (own / "new").read_bytes() == b"x"
    (ours.parent / "plain").symlink_to(ours)
    files.replace_whole(ours.parent / "plain" / "irmap-cache", b"x")
    assert (ours / "irmap-cache").read_bytes() == b"x"


def test_no_log_is_written_through_a_link_of_a_tenant(tenant: Path, ours: Path) -> None:
    (ours / "dump.log").write_text("what happened\n")
    link = lead_to(ours, tenant / "work")
    words = ("pre-dump", "-t", str(os.getpid()), "-D", tenant, "--db", ours / "irmap.db", "-W")
    done = run_irmapdb([*map(str, words), str(link), "-o", "dump.log"], tenant)
    assert (ours / "dump.log").read_text() == "what happened\n", done.said
    assert "symbolic link of uid" in done.err
    assert done.code == 1
    assert not (ours / "irmap-cache").exists()


def test_the_hook_sets_a_broken_cache_aside_in_its_work_dir_alone(
    tenant: Path, ours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tenant / "work"
    work.mkdir()
    for directory in (work, ours):
        (directory / "irmap-cache").write_bytes(b"\xff broken")
    give_away(tenant)
    monkeypatch.chdir(work)
    state = hook_job._State(hook_job.Job(1, "", Config(), HookConfig(), monotonic()))
    work.rename(tenant / "moved")
    lead_to(ours, work)
    assert hook_job._old_entries(state) == ()
    assert os.listdir(ours) == ["irmap-cache"]
    assert os.listdir(tenant / "moved") == [hook_job.ASIDE_NAME]


@pytest.mark.parametrize("kind", ["FIFO", "endless device", "large"])
def test_sql_from_a_file_neither_waits_nor_reads_without_end(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "report.sql"
    if kind == "FIFO":
        os.mkfifo(file)
    elif kind == "large":
        file.touch()
        os.truncate(file, 1 << 40)
    else:
        file = Path("/dev/zero")
    done = run_irmapdb(["sql", "-f", str(file)], tmp_path)
    assert done.code == 1
    assert "cannot read" in done.err
    assert ("more than" if kind == "large" else "not a regular file") in done.err


def test_marks_of_dumps_do_not_pile_up_while_the_service_answers(ours: Path) -> None:
    require_root()
    run = RunDirectory(ours)
    for name in ("hook-10-20-30", "hook-11-20-30", "reply-1-2", "other-1-2-3"):
        (ours / name).touch()
        if name != "hook-11-20-30":
            os.utime(ours / name, (PAST_S, PAST_S))
    run.clean([])
    assert sorted(os.listdir(ours)) == ["hook-11-20-30", "other-1-2-3"]


def test_a_fuse_server_of_a_tenant_cannot_say_that_its_files_are_ours(tmp_path: Path) -> None:
    require_root()
    for user, shared in ((TENANT, True), (0, False)):
        with (
            SilentFuse(tmp_path, user=user),
            open_directory(os.fsencode(tmp_path)) as directory,
        ):
            assert os.fstat(directory.fd).st_uid == 0
            assert bool(directory.shared_with) == shared, directory.shared_with
            assert not shared or f"FUSE filesystem that uid {TENANT}" in directory.shared_with
