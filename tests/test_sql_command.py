"""`irmapdb sql`: its output for people and programs, and its errors."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys

import pytest

from irmapdb import queries
from irmapdb.store.database import Store
from tests.support.cli import irmapdb
from tests.support.scenario import write_scenario
from tests.support.terminal import at_terminal
from tests.test_ask import HOSTILE, snapshot


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("sql")
    write_scenario(place / "irmap.db")
    return place


@pytest.fixture(autouse=True)
def here(place, monkeypatch):
    monkeypatch.chdir(place)


def test_every_saved_query_is_listed_shown_and_run():
    listed = irmapdb("sql", "--list").out
    described = json.loads(irmapdb("sql", "--list", "--json").out)
    assert [one["name"] for one in described] == list(queries.SAVED)
    for saved in queries.SAVED.values():
        assert f"\n{saved.name} " in listed
        assert irmapdb("sql", saved.name, "--print", "-p", "inode=1:2").out == (
            f"{saved.sql}\n" if "inode" in saved.parameters else ""
        )
        given = ("-p", "inode=fe00000:2e3") if "inode" in saved.parameters else ()
        done = irmapdb("sql", saved.name, *given)
        assert (done.code, done.err) == (0, "")
        assert len(done.out.splitlines()) > 1, "the scenario has rows for each query"


def test_an_empty_answer_is_explained_where_it_is_not_plain(tmp_path):
    database = tmp_path / "empty.db"
    Store.open(database, create=True).close()
    done = irmapdb("sql", "frozen", "--json", "--db", str(database))
    assert (done.code, json.loads(done.out)) == (0, [])
    assert "no freeze is known" in done.err
    assert irmapdb("sql", "runs", "--db", str(database)).err == ""


def test_forms_of_an_answer():
    query = "SELECT path, ino, NULL AS unset FROM mapping WHERE ino IN (742, -6) ORDER BY ino"
    table = irmapdb("sql", query).out
    assert table.splitlines() == [
        "PATH                   INO  UNSET",
        "/var/lib/app/state      -6  -",
        r"/srv/data/caf\xe9.txt  742  -",
    ]
    document = json.loads(irmapdb("sql", query, "--json").out)
    assert [os.fsencode(one["path"]) for one in document] == [
        b"/var/lib/app/state",
        b"/srv/data/caf\xe9.txt",
    ]
    assert document[0] == {"path": "/var/lib/app/state", "ino": -6, "unset": None}
    rows = list(csv.reader(io.StringIO(irmapdb("sql", query, "--csv").out)))
    assert rows == [
        ["path", "ino", "unset"],
        ["/var/lib/app/state", "-6", ""],
        ["/srv/data/caf\udce9.txt", "742", ""],
    ]


HANDLE = "2f7a6b6cc3a9e97a"  # bytes that could be a name


@pytest.mark.parametrize(
    ("blob", "column", "is_name"),
    [
        ("2f636166e9", "a", True),
        ("636166e9", "comm", True),
        ("2f6e65770a6c696ee9", "a", True),
        ("e30200000100ed5e", "a", False),
        ("2f0200000100ed5e", "a", False),
        ("0a636166e9", "a", False),
        (HANDLE, "a", True),
        (HANDLE, "handle", False),
        (HANDLE, "HANDLE", False),
    ],
)
def test_a_blob_is_a_name_or_hex_in_every_form(blob, column, is_name):
    query = f"SELECT x'{blob}' AS {column}"
    as_hex = f"x'{blob}'"
    (row,) = json.loads(irmapdb("sql", query, "--json").out)
    (cell,) = list(csv.reader(io.StringIO(irmapdb("sql", query, "--csv").out, newline="")))[1]
    assert row[column] == cell
    assert (os.fsencode(cell) == bytes.fromhex(blob)) is is_name
    assert (cell == as_hex) is not is_name
    assert (as_hex in irmapdb("sql", query).out) is not is_name


@pytest.mark.parametrize("name", ["runs", "frozen"])
def test_saved_queries_of_many_columns_have_times_to_the_second(name):
    rows = json.loads(irmapdb("sql", name, "--json").out)
    assert rows
    assert all(re.fullmatch(r"[\d-]{10} [\d:]{8}", one["started_at"]) for one in rows)


def test_names_do_not_control_the_terminal():
    out = irmapdb("sql", r"""SELECT x'2f611b5b324a0ae2 80ae' AS a""".replace(" ", "", 1)).said
    out += irmapdb("sql", "SELECT x'2f1b5b324a0a', char(27) || '[2J', x'00ff' AS \"\x1b\"").said
    assert "\x1b" not in out
    assert r"/\x1b[2J\n" in out
    assert "x'00ff'" in out


def test_columns_of_one_name_are_all_kept():
    document = json.loads(irmapdb("sql", "SELECT 1 AS a, 2 AS a, 3 AS b, 4 AS a", "--json").out)
    assert document == [{"a": 1, "a_2": 2, "b": 3, "a_3": 4}]


def test_sql_comes_from_a_file_or_a_pipe(tmp_path):
    file = tmp_path / "report.sql"
    file.write_text("SELECT 1 AS one;\nSELECT 2 AS two;\n")
    wanted = "ONE\n  1\n\nTWO\n  2\n"
    assert irmapdb("sql", "-f", file).out == wanted
    assert irmapdb("sql", "-f", "-", stdin=file.read_bytes()).out == wanted
    assert irmapdb("sql", stdin=file.read_bytes()).out == wanted
    file.write_text("SELECT 1;\nSELECT * FORM run;\n")
    done = irmapdb("sql", "-f", file)
    assert done.code == 1
    assert done.err == (
        f'irmapdb: {file}: line 2: near "FORM": syntax error; docs/sql.md has the tables and '
        "views; `irmapdb sql --list` has examples\n"
    )
    assert irmapdb("sql", "-f", tmp_path / "none").err.startswith(
        f"irmapdb: cannot read {tmp_path}/none: No such"
    )


@pytest.mark.parametrize("text", [b"SELECT 'caf\xe9';", b"\x7fELF\x02\xff;\x00\xfe;"])
def test_sql_that_is_no_utf8_is_refused_in_a_line(tmp_path, text):
    file = tmp_path / "latin-1.sql"
    file.write_bytes(text)
    ways = [irmapdb("sql", "-f", file), irmapdb("sql", "-f", "-", stdin=text)]
    if b"\0" not in text:
        ways.append(irmapdb("sql", os.fsdecode(text)))
        ways.append(irmapdb("sql", os.fsdecode(text), "--print"))
    for done in ways:
        assert "Traceback" not in done.err
        assert done.code == (0 if done.out else 1)


def test_values_of_parameters():
    query = "SELECT ino FROM mapping WHERE path = :path"
    assert irmapdb("sql", query, "-p", "path=/srv/data").out.split() == ["INO", "700"]
    odd = os.fsdecode(b"path=/srv/data/caf\xe9.txt")
    assert irmapdb("sql", query, "-p", odd).out.split() == ["INO", "742"]
    kinds = "SELECT typeof(:a), typeof(:b), typeof(:c)"
    done = irmapdb(
        "sql", kinds, "--csv", "-p", "a=7", "-p", "b=18446744073709551615", "-p", "c=007"
    )
    assert done.out.splitlines()[1] == "integer,text,text"


def test_cut_rows_are_reported_and_are_a_finding():
    done = irmapdb("sql", "SELECT id FROM mapping", "--limit", "2")
    assert (done.code, len(done.out.splitlines())) == (3, 3)
    assert done.err == "cut after 2 rows: --limit 0 has all\n"
    assert irmapdb("sql", "SELECT id FROM mapping", "--limit", "0").code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("stael",), 2, "stael: no saved query; did you mean stale? there are cache, changes"),
        (("history",), 2, "the saved query history needs inode; -p inode=VALUE"),
        (("stale", "-p", "days=3"), 2, "-p days: the saved query stale has no parameter"),
        (("SELECT 1", "-p", "days"), 2, "-p days: not NAME=VALUE"),
        (("SELECT 1", "-f", "x.sql"), 2, "a query and a file"),
        (("SELECT 1", "--json", "--csv"), 2, "--json and --csv are two forms"),
        (("SELECT :x",), 1, ":x has no value; give it one with -p NAME=VALUE"),
        (("VACUUM",), 1, "VACUUM is refused"),
        (("SELECT 1", "--db", "nowhere.db"), 1, "nowhere.db: no such database"),
        (("SELECT 1", "--db", "/etc/passwd"), 1, "/etc/passwd: not a database: it begins with"),
        (("SELECT 1", "--db", "."), 1, "is a directory, not a database"),
    ],
)
def test_an_impossible_request_is_refused_in_one_line(arguments, code, said):
    done = irmapdb("sql", *arguments)
    assert (done.code, done.out) == (code, "")
    assert said in done.err.splitlines()[0]
    assert "Traceback" not in done.err


@pytest.mark.slow
def test_hostile_statements_through_the_command_leave_every_byte(place):
    before = snapshot(place)
    for text in HOSTILE:
        done = irmapdb("sql", "-f", "-", stdin=text.format(dir=place).encode())
        assert done.code in {1, 2}, text
        assert snapshot(place) == before, text


def test_one_endless_call_of_a_function_is_ended(place):
    # SQLite looks at the clock between its steps alone: nothing but the end of the process helps.
    query = "SELECT printf('%.*c', 2147483647, 'x') || printf('%.*c', 2147483647, 'x')"
    done = subprocess.run(
        [sys.executable, "-m", "irmapdb", "sql", "--timeout", "0.5", "-W", str(place), query],
        capture_output=True,
        check=False,
        text=True,
    )
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("irmapdb: stopped: one call of a function took longer than 0.5 s; ")


def test_help_waits_for_nothing():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "irmapdb", "sql", "--help"],
        check=True,
        capture_output=True,
        text=True,
        cwd=os.path.dirname(os.path.dirname(__file__)),
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not {"sqlalchemy", "alembic"} & imported


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_terminal_without_a_query_gets_the_saved_ones_and_other_tools(form, place):
    code, shown = at_terminal("sql", *form, cwd=place, stdin_too=True)
    text = shown.decode()
    assert code == 0
    assert text.startswith(irmapdb("sql", "--list", *form).out)
    for tool in ("sqlite3 -readonly", "litecli", "datasette"):
        assert f"    {tool} irmap.db\n" in text
    remark = text[text.index("`irmapdb sql NAME`") :]
    assert max(map(len, remark.splitlines())) <= 80
