"""docs/fleet-sql.md: each statement gives the answer below it, also as a saved query.

`python -m tests.fleet.test_cookbook` writes the answers into the page anew.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import pytest

from irmapdb.fleet import views
from irmapdb.fleet.queries import SAVED
from tests.support.cli import irmapdb
from tests.support.fleet_scenario import write_fleet
from tests.support.postgres import Postgres

PAGE = Path(__file__).parents[2] / "docs" / "fleet-sql.md"
_BLOCK = re.compile(r"^```sql\n(.*?)^```\n\n```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_EXAMPLES = _BLOCK.findall(PAGE.read_text("utf-8")) if PAGE.exists() else []


def _answer(url: str, sql: str) -> str:
    done = irmapdb("sql", sql, "--to", url)
    assert done.code == 0, done.said
    return done.out


@pytest.fixture(scope="module")
def fleet(postgres, _template, tmp_path_factory):
    url = postgres.new_database(_template)
    write_fleet(tmp_path_factory.mktemp("fleet"), url)
    return url


@pytest.mark.parametrize(("sql", "shown"), _EXAMPLES, ids=[str(n) for n in range(len(_EXAMPLES))])
def test_each_statement_gives_the_answer_on_the_page(fleet, sql, shown):
    assert _answer(fleet, sql) == shown


def test_every_question_and_view_is_on_the_page():
    text = PAGE.read_text("utf-8")
    questions = re.findall(r"^### .*\?$", text, re.MULTILINE)
    assert len(questions) == len(_EXAMPLES) >= 12
    for name in views.statements():
        assert f"`{name}`" in text or f"FROM {name}" in text
    for name in SAVED:
        assert f"`{name}`" in (PAGE.parent / "fleet.md").read_text("utf-8")


# The SQL of Grafana's macros, by its documentation of the PostgreSQL data source.
_MACROS = {
    r"\$__timeFilter\((\w+)\)": r"\1 BETWEEN '2026-11-01' AND '2026-12-01'",
    r"\$__timeGroupAlias\((\w+), '5m'\)": r"to_timestamp(floor(extract(epoch from \1) / 300) * 300)"
    ' AS "time"',
}
_DASHBOARD = json.loads((PAGE.parents[1] / "contrib/grafana/irmapdb-fleet.json").read_bytes())


@pytest.mark.parametrize("panel", _DASHBOARD["panels"], ids=lambda panel: panel["title"])
def test_each_panel_of_the_dashboard_has_an_answer(fleet, panel):
    for target in panel["targets"]:
        sql = target["rawSql"]
        for macro, text in _MACROS.items():
            sql = re.sub(macro, text, sql)
        done = irmapdb("sql", sql, "--to", fleet, "--json")
        assert done.code == 0, done.said
        assert json.loads(done.out)


def _rewrite() -> None:
    with Postgres() as server, tempfile.TemporaryDirectory() as directory:
        url = server.new_database()
        assert irmapdb("fleet", "init", "--to", url).code == 0
        write_fleet(Path(directory), url)
        text = PAGE.read_text("utf-8")
        PAGE.write_text(
            _BLOCK.sub(
                lambda found: f"```sql\n{found[1]}```\n\n```text\n{_answer(url, found[1])}```", text
            ),
            "utf-8",
        )


if __name__ == "__main__":
    _rewrite()
