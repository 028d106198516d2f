"""`irmapdb sql` and its prompt, as a person or a program meets them."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import pty
import re
import select
import signal
import stat
import subprocess
import sys
import time

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from irmapdb import queries
from irmapdb.commands.completion import SqlCompleter, propose
from irmapdb.commands.prompt import Prompt, history_path
from irmapdb.store.ask import Ask
from irmapdb.store.database import Store
from tests.support.cli import irmapdb
from tests.support.scenario import write_scenario
from tests.test_ask import HOSTILE, snapshot


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("sql")
    write_scenario(place / "irmap.db")
    return place


@pytest.fixture(autouse=True)
def here(place, monkeypatch, tmp_path):
    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


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
        assert len(done.out.splitlines()) > 1, "the scenario has something of everything"


def test_an_empty_answer_is_explained_where_it_is_not_plain(tmp_path):
    database = tmp_path / "empty.db"
    Store.open(database, create=True).close()
    done = irmapdb("sql", "frozen", "--json", "--db", str(database))
    assert (done.code, json.loads(done.out)) == (0, [])
    assert "under the hook CRIU freezes by itself" in done.err
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


HANDLE = "2f7a6b6cc3a9e97a"  # what could be a name


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


def test_names_cannot_play_with_the_terminal():
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
        f'irmapdb: {file}: line 2: near "FORM": syntax error\n  SELECT * FORM run;\n           ^\n'
    )
    assert irmapdb("sql", "-f", tmp_path / "none").err.startswith(
        f"irmapdb: cannot read {tmp_path}/none: No such"
    )


@pytest.mark.parametrize("text", [b"SELECT 'caf\xe9';", b"\x7fELF\x02\xff;\x00\xfe;"])
def test_sql_that_is_no_utf8_is_refused_in_a_line(tmp_path, text, capsys):
    file = tmp_path / "latin-1.sql"
    file.write_bytes(text)
    ways = [irmapdb("sql", "-f", file), irmapdb("sql", "-f", "-", stdin=text)]
    if b"\0" not in text:
        ways.append(irmapdb("sql", os.fsdecode(text)))
        ways.append(irmapdb("sql", os.fsdecode(text), "--print"))
        shown = session(f"{os.fsdecode(text)}\rSELECT 6 * 7;\r.quit\r", capsys)
        assert "not UTF-8" in shown.err
        assert "42" in shown.out
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


def test_what_is_cut_is_said_and_is_a_finding():
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
        (("SELECT :x",), 1, ":x has no value; -p x=VALUE"),
        (("VACUUM",), 1, "VACUUM is refused"),
        (("SELECT 1", "--db", "nowhere.db"), 1, "nowhere.db: no such database"),
        (("SELECT 1", "--db", "/etc/passwd"), 1, "/etc/passwd: not a database: it begins with"),
        (("SELECT 1", "--db", "."), 1, "is a directory, not a database"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(arguments, code, said):
    done = irmapdb("sql", *arguments)
    assert (done.code, done.out) == (code, "")
    assert said in done.err.splitlines()[0]
    assert "Traceback" not in done.err


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
    assert not {"sqlalchemy", "alembic", "prompt_toolkit", "pygments.lexers.sql"} & imported


# The prompt


def session(typed, capsys, **how):
    with Ask.open("irmap.db") as ask, create_pipe_input() as source:
        source.send_bytes(os.fsencode(typed))
        Prompt(ask, source=source, sink=DummyOutput(), **how).run()
    return capsys.readouterr()


def test_a_statement_ends_with_its_semicolon(capsys):
    shown = session("SELECT 1 AS a,\r';' AS b\r;\r.quit\r", capsys)
    assert shown.out.splitlines()[1:] == ["A  B", "1  ;"]
    assert shown.err.startswith("1 row (")


def test_the_commands_of_the_prompt(capsys):
    typed = (
        ".HELP\r.tables\r.Schema MAPPING\r.queries\r.run history inode=fe00000:2e3\rstale\r"
        ".mode csv\rSELECT 1 AS x;\r.limit 1\rSELECT id FROM run;\r.timeout 5\r"
    )
    shown = session(f"{typed}.quit\r", capsys)
    for wanted in (
        ".timeout SECONDS",
        "kdev('254:0')",
        "watches_by_directory",
        "CREATE TABLE mapping",
        "next-scan",
        "imported",
        "STALE_FOR",
        "x\r\n1",
        "id\r\n1\r\n",
    ):
        assert wanted in shown.out
    assert "1 row, and there are more" in shown.err


def test_an_error_at_the_prompt_ends_nothing(capsys):
    typed = (
        ".nonsense\r.mode x\r.limit x\r.timeout -1\r.schema nowhere\r.run stael\r"
        "SELECT * FORM run;\rDELETE FROM run;\rSELECT 7 AS seven;\r\x04"
    )
    shown = session(typed, capsys)
    for wanted in (
        ".nonsense: no such command",
        ".mode x: no such form",
        ".limit x: not a number",
        ".timeout -1: not a number",
        "nowhere: no such table or view",
        "did you mean stale?",
        "           ^",
        "DELETE is refused",
    ):
        assert wanted in shown.err
    assert "SEVEN" in shown.out


def test_the_prompt_speaks_of_itself(capsys):
    typed = (
        "stael\rstael;\r.run\r.run history\r.run stale x=1\r.run history inode\r.run 'x\r"
        "history\r.limit 1.5\rSELECT :path;\rSELECT 'caf\udce9';\r.timeout 0.01\r"
        "WITH\rRECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n FROM c) SELECT max(n) FROM c;\r"
        ".run history inode='fe00000:2e3'\r.quit\r"
    )
    shown = session(typed, capsys)
    lines = shown.err.splitlines()
    for place, wanted in enumerate(
        (
            "stael: no saved query; did you mean stale? there are cache",
            "stael: no saved query; did you mean stale? there are cache",
            ".run: the name of a saved query is missing; .queries lists them",
            "the saved query history needs inode; .run history inode=VALUE",
            "x: the saved query stale has no parameter",
            "inode: not NAME=VALUE; write days=7 for :days",
            ".run 'x: No closing quotation",
            "the saved query history needs inode; .run history inode=VALUE",
            ".limit 1.5: not a whole number",
            ":path has no value; write the value itself",
        )
    ):
        assert lines[place].startswith(wanted)
    assert "longer than 0.01 s; narrow the question, or give it more with .timeout" in shown.err
    assert "imported" in shown.out
    assert not {"-p", "--timeout"} & set(shown.err.split())


@pytest.mark.parametrize(
    ("before", "wanted"),
    [
        ("", True),
        ("next", True),
        ("next-sc", True),
        ("n", True),
        ("SELECT n", False),
        (";n", False),
    ],
)
def test_saved_queries_are_completed_where_one_may_stand(before, wanted):
    completer = SqlCompleter(COLUMNS, ["kdev"], [".run"], queries.SAVED)
    found = completer.get_completions(Document(before), CompleteEvent())
    filled = [before[: len(before) + one.start_position] + one.text for one in found]
    assert ("next-scan" in filled) == wanted


def test_the_history_is_ones_own(tmp_path, monkeypatch, capsys):
    session("SELECT 'remember me';\r.quit\r", capsys)
    path = history_path()
    assert path == tmp_path / "state" / "irmapdb" / "sql-history"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert "remember me" in path.read_text()
    path.chmod(0o644)
    history_path()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    assert history_path() is None
    assert not (tmp_path / "elsewhere").exists()
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert history_path() == tmp_path / ".local" / "state" / "irmapdb" / "sql-history"


COLUMNS = {
    "mapping": ("id", "dev", "path"),
    "run": ("id", "event"),
    "stale_mappings": ("path", "moved_to"),
}


@pytest.mark.parametrize(
    ("before", "wanted"),
    [
        ("SEL", ["SELECT"]),
        ("sel", ["select"]),
        ("SELECT * FROM ", ["mapping", "run", "stale_mappings"]),
        ("SELECT * FROM map", ["mapping"]),
        ("SELECT * FROM run JOIN st", ["stale_mappings"]),
        ("SELECT * FROM run r, map", ["mapping"]),
        ("SELECT * FROM run WHERE ev", ["event"]),
        ("SELECT * FROM stale_mappings WHERE mov", ["moved_to"]),
        ("SELECT * FROM mapping AS m WHERE m.p", ["m.path"]),
        ("SELECT * FROM mapping m, run WHERE run.", ["run.id", "run.event"]),
        ("SELECT kd", ["kdev("]),
        ("SELECT x.", []),
        ("SELECT ", []),
    ],
)
def test_what_may_come_next(before, wanted):
    assert list(propose(before, COLUMNS, ["kdev", "hex_ino"])) == wanted


def test_a_terminal_gets_a_prompt():
    pid, fd = pty.fork()
    if pid == 0:
        environ = {
            **os.environ,
            "PROMPT_TOOLKIT_NO_CPR": "1",
            "TERM": "xterm",
            "PYTHONPATH": os.path.dirname(os.path.dirname(__file__)),
        }
        os.execve(sys.executable, [sys.executable, "-m", "irmapdb", "sql"], environ)
    try:
        until(fd, b"irmapdb>")
        os.write(fd, b"SELECT count(*) AS runs,\rhex_ino(41, 9) AS log FROM run;\r")
        assert b"29:9" in until(fd, b"1 row (", b"irmapdb>")
        numbers = b"WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n FROM c)"
        os.write(fd, numbers + b" SELECT max(n) FROM c;\r")
        until(fd, b"\x1b[?2004l")  # the line is taken
        time.sleep(0.5)
        os.write(fd, b"\x03")
        until(fd, b"stopped", b"irmapdb>")
        os.write(fd, b".quit\r")
        with contextlib.suppress(
            OSError, EOFError
        ):  # the terminal goes with the last who has it open
            until(fd, b"never")
        _, status = os.waitpid(pid, 0)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    finally:
        os.close(fd)
    assert os.waitstatus_to_exitcode(status) == 0


def until(fd, *wanted):
    """What is read until it has all of these, one after the other: they may come in one read."""
    seen = b""
    in_order = re.compile(b".*".join(map(re.escape, wanted)), re.DOTALL)
    while not in_order.search(seen):
        assert select.select([fd], [], [], 60)[0], seen
        some = os.read(fd, 65536)
        if not some:
            raise EOFError(seen)
        seen += some
    return seen
