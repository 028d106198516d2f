"""`irmapdb warm --once`: the files that it makes, and those that it does not change."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from irmapdb.config import Config, WarmConfig
from irmapdb.errors import FileError
from irmapdb.image.cache import decode_cache
from irmapdb.node.service import Service
from irmapdb.store.database import Store
from tests.support.cli import irmapdb
from tests.support.warm import OURS


def image_of(options, document):
    """The entries of the image of the only container."""
    (one,) = document["containers"]
    path = options.run / f"image-{one['pid']}-{one['starttime']}"
    return {entry.path for entry in decode_cache(path.read_bytes(), "image")}


def look(options):
    with Service(options) as service:
        return service.once()


def test_every_watch_of_a_container_has_a_proved_path(node):
    container = node.container()
    for index in range(5):
        container.add_inotify(f"/srv/app/file-{index}")
    child = container.fork()
    child.add_inotify("/srv")
    options = node.options()
    document = look(options)
    (one,) = document["containers"]
    assert (one["id"], one["watches"], one["resolved"]) == (container.id, 6, 6)
    assert one["state"] == "ready"
    assert image_of(options, document) >= {b"/srv/app/file-0", b"/srv"}
    database = options.config.warm.directory / one["database"]
    with Store.open_readonly(database) as store:
        assert {row.path for row in store.all_mappings()} >= {b"/srv/app/file-0", b"/srv"}


def test_an_unchanged_container_is_not_worked_on_again(node):
    container = node.container()
    container.add_inotify("/srv/app/file-0")
    with Service(node.options()) as service:
        first = service.once()["containers"][0]["proved_at"]
        assert service.once()["containers"][0]["proved_at"] == first
        container.add_inotify("/srv/app/file-1")
        again = service.once()["containers"][0]
        assert again["proved_at"] > first
        assert again["resolved"] == 2


def test_a_rename_in_a_path_is_noticed(node, area):
    data = area.ext4("data").mountpoint
    (data / "state").mkdir()
    (data / "state" / "file").write_text("bound")
    container = node.container({data: "/data"})
    container.add_inotify("/data/state/file")
    options = node.options()
    with Service(options) as service:
        assert image_of(options, service.once()) == {b"/data/state/file"}
        (data / "state").rename(data / "moved")
        assert image_of(options, service.once()) == {b"/data/moved/file"}


def test_a_child_that_is_forked_all_the_time_is_no_change(node):
    container = node.container()
    container.add_inotify("/srv/app/file-0")
    with Service(node.options()) as service:
        first = service.once()["containers"][0]
        container.fork()
        second = service.once()["containers"][0]
    assert second["tasks"] == first["tasks"] + 1
    assert second["proved_at"] == first["proved_at"]


def test_a_container_without_watches_has_an_image_without_entries(node):
    node.container()
    options = node.options()
    document = look(options)
    assert image_of(options, document) == set()
    assert document["containers"][0]["state"] == "ready"


def test_a_container_that_is_gone_leaves_nothing_but_its_database_for_a_while(node):
    container = node.container()
    container.add_inotify("/srv")
    options = node.options()
    with Service(options) as service:
        name = service.once()["containers"][0]["database"]
        node.end(container)
        assert service.once()["containers"] == []
        assert not list(options.run.glob("image-*"))
        database = options.config.warm.directory / name
        assert database.exists()
        long_ago = time.time() - 8 * 86400
        os.utime(database, (long_ago, long_ago))
        service.once()
        assert not database.exists()


def test_other_files_in_the_directory_stay(node):
    directory = node.options().config.warm.directory
    directory.mkdir(mode=0o700)
    kept = [directory / "dump-0123456789abcdef.db", directory / "notes.txt"]
    for path in kept:
        path.write_text("mine")
        os.utime(path, (0, 0))
    look(node.options())
    assert all(path.exists() for path in kept)


def test_a_broken_database_does_not_cost_the_image(node):
    container = node.container()
    container.add_inotify("/srv/app/file-3")
    options = node.options()
    name = look(options)["containers"][0]["database"]
    (options.config.warm.directory / name).write_bytes(b"no database" * 100)
    container.add_inotify("/srv/app/file-4")
    document = look(options)
    assert image_of(options, document) == {b"/srv/app/file-3", b"/srv/app/file-4"}
    assert name in document["containers"][0]["problem"]


def test_a_database_that_could_not_be_written_is_written_later(node, area):
    node.container().add_inotify("/srv/app/file-3")
    directory = node.options().config.warm.directory
    directory.mkdir(mode=0o700)
    disk = area.tmpfs(directory)
    disk.chmod(0o700)
    filler = disk / "filler"
    free = os.statvfs(disk)
    filler.write_bytes(bytes(free.f_bavail * free.f_bsize))
    with Service(node.options(interval_s=1e-6)) as service:
        (one,) = service.once()["containers"]
        assert (one["resolved"], one["state"]) == (1, "ready")
        assert "the disk is full" in one["problem"]
        filler.unlink()
        (one,) = service.once()["containers"]
        assert (one["resolved"], one["problem"]) == (1, "")
        with Store.open_readonly(disk / one["database"]) as store:
            assert [row.path for row in store.all_mappings()] == [b"/srv/app/file-3"]


def test_new_watches_are_proved_while_the_database_cannot_be_written(node, area):
    container = node.container()
    container.add_inotify("/srv/app/file-3")
    directory = node.options().config.warm.directory
    directory.mkdir(mode=0o700)
    disk = area.tmpfs(directory)
    disk.chmod(0o700)
    free = os.statvfs(disk)
    (disk / "filler").write_bytes(bytes(free.f_bavail * free.f_bsize))
    with Service(node.options(interval_s=600)) as service:
        (one,) = service.once()["containers"]
        assert "the disk is full" in one["problem"]
        container.add_inotify("/srv/app/file-4")
        (one,) = service.once()["containers"]
        assert (one["watches"], one["resolved"]) == (2, 2)
        assert "the disk is full" in one["problem"]


def test_only_one_at_a_time(node):
    with Service(node.options()), pytest.raises(FileError, match="running already"):
        Service(node.options()).__enter__()
    look(node.options())


@pytest.mark.parametrize("wrong", ["file", "link", "others"])
def test_a_run_directory_that_is_not_ours_is_refused(node, wrong, tmp_path):
    run = tmp_path / "run"
    if wrong == "file":
        run.write_text("")
    elif wrong == "link":
        (tmp_path / "other").mkdir()
        run.symlink_to(tmp_path / "other")
    else:
        run.mkdir()
        os.chown(run, 1234, 1234)
    with pytest.raises(FileError, match="run"):
        Service(node.options(run=run)).__enter__()


def test_the_command_lists_the_watches_without_a_path(node, tmp_path):
    container = node.container()
    container.add_inotify("/srv")
    gone = Path(node.roots[container.id]) / "srv" / "app" / "file-9"
    container.add_inotify("/srv/app/file-9")
    container.open("/srv/app/file-9")
    gone.unlink()
    config = tmp_path / "irmapdb.toml"
    config.write_text(f'[warm]\ndirectory = "{tmp_path}/databases"\nshare = 8\n')
    options = (
        "--cgroup",
        OURS,
        "--run-dir",
        tmp_path / "run",
        "--config",
        config,
    )
    done = irmapdb("warm", "--once", *options)
    assert done.code == 3, done.said
    assert container.id in done.out
    assert "no path: inotify" in done.out
    shown = irmapdb("warm", "--status", "--json", "--run-dir", tmp_path / "run")
    assert shown.code == 3
    document = json.loads(shown.out)
    assert document["running"] is None
    assert document["containers"][0]["watches"] == 2
    assert irmapdb("warm", "--status", "--run-dir", tmp_path / "run").code == 3


def test_status_where_none_ever_ran(tmp_path):
    done = irmapdb("warm", "--status", "--run-dir", tmp_path / "none")
    assert done.code == 1  # the options are right
    assert not (tmp_path / "none").exists()


def test_the_default_directories():
    assert Config().warm == WarmConfig()
    assert WarmConfig().directory == b"/var/lib/irmapdb"
