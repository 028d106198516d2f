"""A real container of podman: the verdicts that a push sends are those of CRIU."""

from __future__ import annotations

import json
import os

import pytest

from irmapdb.kernel.proc.containers import container_of
from tests.support.cli import irmapdb
from tests.support.features import require_program
from tests.support.hook import installed_for_runc
from tests.support.podman import PodmanContainer
from tests.support.programs import SYSTEM_PATH, ProgramError

_IMAGE = "localhost/irmapdb-test:1"


@pytest.fixture
def container(rig, tmp_path, monkeypatch):
    require_program("runc")
    require_program("podman")
    monkeypatch.setenv("IRMAPDB_HOOK_PAUSED_TIMEOUT", "20")  # enough, on a busy machine as well
    path = os.pathsep.join((str(rig), SYSTEM_PATH))
    monkeypatch.setenv("PATH", os.pathsep.join((str(rig), os.environ["PATH"])))
    with PodmanContainer(tmp_path / "podman", path) as made:
        yield made


@pytest.fixture
def database(container, tmp_path):
    """The database of the container, with a pre-dump in it."""
    container.add_inotify("/srv/app/settings")
    path = tmp_path / f"{container_of(container.pid).file_stem}.db"
    words = ("pre-dump", "-t", container.pid, "-W", tmp_path, "--db", path)
    done = irmapdb(*words)
    assert done.code == 0, done.said
    return path


def _rows(url, name):
    done = irmapdb("sql", name, "--to", url, "--json")
    assert done.code == 0, done.said
    return json.loads(done.out)


def _push(url, database):
    done = irmapdb("fleet", "push", database, "--check", "--to", url, "--node", "one")
    assert done.code == 0, done.said


def test_the_verdicts_of_a_container_are_those_of_criu(container, database, url, tmp_path):
    _push(url, database)
    (known,) = _rows(url, "SELECT image, container_name FROM containers")
    assert known == {"image": _IMAGE, "container_name": container.name}
    (row,) = _rows(url, "verdicts")
    assert (row["image"], row["containers"], row["watches"]) == (_IMAGE, 1, 1)
    assert row["why"]
    assert row["advice"]
    with pytest.raises(ProgramError):
        container.checkpoint()
    # irmapdb found the path, so with the hook the same container can be dumped.
    assert _rows(url, "failing") == []
    assert _rows(url, "failing-images") == []
    with installed_for_runc(tmp_path):
        _push(url, database)
        assert _rows(url, "verdicts") == []
        (row,) = _rows(url, "SELECT verdict, watches, fails FROM last_verdicts")
        assert row == {"verdict": "cache", "watches": 1, "fails": False}
        container.checkpoint()
