"""Where one statement ends and the next begins, and the error of a statement."""

from __future__ import annotations

import re
import sqlite3

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from irmapdb.errors import SqlError
from irmapdb.store.ask import Ask
from irmapdb.store.database import Store
from irmapdb.store.sqltext import split

PARTS = [
    *("SELECT", "1", "x.y", " ", "\n", "a'", "'it''s; '", '"q;""r"', "`;`", "[;]", "-- c;\n"),
    *("/* ; */", "/*", ";", ":name", "?1", "<>", "0x1F", "1e5", "é", "x'2f'", "'", '"', "END"),
]
BETWEEN = re.compile(r"(?:\s|;|--[^\n]*|/\*.*?(?:\*/|\Z))*", re.DOTALL)


@given(
    st.lists(st.sampled_from(PARTS) | st.text(st.characters(), max_size=3), max_size=12).map(
        "".join
    )
)
def test_each_part_of_the_text_is_in_one_statement(text):
    pieces = list(split(text))
    end = 0
    for piece in pieces:
        start = BETWEEN.match(text, end).end()
        assert text.startswith(piece.text, start)
        assert piece.line == text[:start].count("\n") + 1
        end = start + len(piece.text)
    assert BETWEEN.fullmatch(text[end:])
    for piece in pieces[:-1]:
        sent = piece.text.replace("\0", " ").encode(errors="replace").decode()
        assert sqlite3.complete_statement(sent)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        (" ;; -- nothing\n;", []),
        ("SELECT 1", ["SELECT 1"]),
        ("SELECT ';'; -- one;\nSELECT /* ; */ 2 ;", ["SELECT ';';", "SELECT /* ; */ 2 ;"]),
        ('SELECT "a;b", [c;d], `e;f`;SELECT 2', ['SELECT "a;b", [c;d], `e;f`;', "SELECT 2"]),
        (
            "CREATE TRIGGER t AFTER INSERT ON a BEGIN SELECT 1; SELECT 2; END; SELECT 3;",
            [
                "CREATE TRIGGER t AFTER INSERT ON a BEGIN SELECT 1; SELECT 2; END;",
                "SELECT 3;",
            ],
        ),
    ],
)
def test_statements(text, pieces):
    assert [piece.text for piece in split(text)] == pieces


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    path = tmp_path_factory.mktemp("sqltext") / "irmap.db"
    Store.open(path, create=True).close()
    with Ask.open(path) as opened:
        yield opened


BROKEN = [
    ("SELECT * FORM mapping", 'near "FORM": syntax error'),
    ("SELECT (1, 2", "incomplete input"),
    ("SELECT path FROM mapping WHERE pth = 1", "no such column: pth; did you mean path?"),
    ("SELECT m.path, m.pth FROM mapping m", "no such column: m.pth; did you mean path?"),
    ("SELECT (SELECT scanned FROM run), scanned FROM mapping", "no such column: scanned"),
    ("SELECT id FROM mapping, run", "ambiguous column name: id"),
    ("SELECT path FROM mappin", "no such table: mappin; did you mean mapping?"),
    ("SELECT frob(path) FROM mapping", "no such function: frob"),
    ("SELECT hex_inode(1, 2)", "no such function: hex_inode; did you mean hex_ino?"),
    ("SELECT path, substr() FROM mapping", "wrong number of arguments to function substr()"),
    ("SELECT 'abc", 'unrecognized token: "\'abc"'),
    ("SELECT 1; SELECT 2;\nSELECT 3;\nSELECT * FORM run", 'line 3: near "FORM": syntax error'),
    ("SELECT 1;\n\n-- c;\nSELECT\n* FORM run", 'line 4: near "FORM": syntax error'),
    ("SELECT kdev('x')", "kdev: 'x' is neither a device number nor MAJOR:MINOR"),
    ("SELECT 1, :missing", ":missing has no value; give it one"),
    ("SELECT 1;\nSELECT $missing", "line 2: :missing has no value; give it one"),
    ("SELECT ?", "Binding 1 has no name"),
    ("DELETE FROM mapping", "DELETE is refused"),
    ("SELECT 1; PRAGMA journal_mode = delete", "PRAGMA journal_mode = delete is refused"),
    ("SELECT '\udcff'", "not UTF-8"),
    ("SELECT '\udcff'; SELECT 1;", "not UTF-8"),
    ("SELECT 1; SELECT '\udcff;", "not UTF-8"),
    ("SELECT 1 UNION SELECT 1, 2", "SELECTs to the left and right of UNION do not have the same"),
]


@pytest.mark.parametrize(("text", "said"), BROKEN)
def test_an_error_is_one_line(ask, text, said):
    with pytest.raises(SqlError) as raised:
        list(ask.ask(text))
    assert str(raised.value).startswith(said)
    assert "\n" not in str(raised.value)


def test_a_nul_is_refused(ask):
    with pytest.raises(SqlError, match="null character"):
        list(ask.ask("SELECT 1; SELECT \0 2;"))


@given(
    words=st.lists(st.sampled_from([*PARTS, "path", "mapping", "FROM", "(", ")", ","]), max_size=8)
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_gets_an_answer_or_an_error(ask, words):
    text = " ".join(words)
    said = ""
    try:
        answers = list(ask.ask(text))
    except SqlError as error:
        said = str(error)
    else:
        assert len(answers) == len(list(split(text)))
    assert "\n" not in said
