"""The report of one container: its prediction, and the database that the service keeps for it."""

from __future__ import annotations

import pytest

from irmapdb.kernel.proc.containers import container_of
from tests.support.cli import irmapdb
from tests.support.fleet_rows import Maker

pytestmark = [pytest.mark.kernel, pytest.mark.slow]


@pytest.mark.parametrize("kept_by", ["[warm]\ndirectory", "[hook]\ndb", None])
def test_a_container_with_and_without_a_database(node, tmp_path, monkeypatch, kept_by):
    container = node.container()
    container.add_inotify("/srv/app/file-1")
    databases = tmp_path / "databases"
    databases.mkdir(mode=0o700)
    config = tmp_path / "irmapdb.toml"
    setting = kept_by or "[warm]\ndirectory"
    config.write_text(f'{setting} = "{databases}"\n')
    if kept_by:
        stem = container_of(container.pid).file_stem
        Maker(tmp_path).make(
            databases / f"{stem}.db", runs=3, names=[b"/srv/of-this-container"] * 2
        )
    # A database in the current directory can be of another container.
    monkeypatch.chdir(tmp_path)
    Maker(tmp_path).make(tmp_path / "irmap.db", runs=3, names=[b"/srv/of-another-one"] * 2)
    page = tmp_path / "report.html"
    done = irmapdb("report", "--container", container.id, "-o", page, "--config", config)
    assert done.code == 0, done.said
    text = page.read_text()
    assert "The prediction for each container that runs" in text
    assert ("of-this-container" in text) == (kept_by is not None)
    assert "of-another-one" not in text
    assert ("No database is here yet" in text) == (kept_by is None)
