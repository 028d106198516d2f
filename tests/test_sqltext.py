"""Where one statement ends and the next begins, and where in it the error is."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from irmapdb.errors import SqlError
from irmapdb.store.ask import Ask
from irmapdb.store.database import Store
from irmapdb.store.sqltext import excerpt, split, tokens

PARTS = [
    *("SELECT", "1", "x.y", " ", "\n", "a'", "'it''s; '", '"q;""r"', "`;`", "[;]", "-- c;\n"),
    *("/* ; */", "/*", ";", ":name", "?1", "<>", "0x1F", "1e5", "é", "x'2f'", "'", '"', "END"),
]


@given(
    st.lists(st.sampled_from(PARTS) | st.text(st.characters(), max_size=3), max_size=12).map(
        "".join
    )
)
def test_nothing_is_lost_or_told_twice(text):
    end = 0
    for token in tokens(text):
        assert token.start >= end
        assert text[token.start : token.end] == token.text
        end = token.end
    end = 0
    for piece in split(text):
        assert not list(tokens(text[end : piece.start].replace(";", " ")))
        assert text[piece.start :].startswith(piece.text)
        end = piece.start + len(piece.text)
    assert not list(tokens(text[end:].replace(";", " ")))
    for piece in split(text)[:-1]:
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


# The place is marked «so»; the marks are taken out before SQLite gets to see it.
BROKEN = [
    ("SELECT * «FORM» mapping", 'near "FORM": syntax error'),
    ("SELECT path, «FROM» mapping", 'near "FROM": syntax error'),
    ("SELECT 'FORM', path FROM mapping WHERE «FORM» = FORM", "no such column: FORM"),
    ("SELECT 'garbage' FROM mapping LIMIT 1 «garbage» LIMIT 1", 'near "garbage": syntax error'),
    ("SELECT (1, 2«»", "incomplete input"),
    ("SELECT path FROM mapping WHERE «pth» = 1", "no such column: pth; did you mean path?"),
    ("SELECT m.path, «m.pth» FROM mapping m", "no such column: m.pth; did you mean path?"),
    ("SELECT (SELECT scanned FROM run), «scanned» FROM mapping", "no such column: scanned"),
    ("SELECT «id» FROM mapping, run", "ambiguous column name: id"),
    ("SELECT path FROM «mappin»", "no such table: mappin; did you mean mapping?"),
    ("SELECT «frob»(path) FROM mapping", "no such function: frob"),
    ("SELECT path, «substr»() FROM mapping", "wrong number of arguments to function substr()"),
    ("SELECT «'abc", 'unrecognized token: "\'abc"'),
    ("SELECT 1; SELECT 2;\nSELECT 3;\nSELECT * «FORM» run", 'line 3: near "FORM": syntax error'),
    ("SELECT «kdev»('x')", "kdev: 'x' is neither a device number nor MAJOR:MINOR"),
    ("SELECT 1, «:nobody»", ":nobody has no value; -p nobody=VALUE"),
    ("SELECT «?»", "? has no name"),
    ("«DELETE» FROM mapping", "DELETE is refused"),
    ("SELECT 1; «PRAGMA» journal_mode = delete", "PRAGMA journal_mode = delete is refused"),
    ("SELECT '«\udcff»'", "not UTF-8"),
    ("SELECT '«\udcff»'; SELECT 1;", "not UTF-8"),
    ("SELECT 1; SELECT '«\udcff»;", "not UTF-8"),
]


@pytest.mark.parametrize(("marked", "said"), BROKEN)
def test_an_error_is_shown_where_it_is(ask, marked, said):
    text = marked.replace("«", "").replace("»", "")
    with pytest.raises(SqlError) as raised:
        list(ask.ask(text))
    first, line, caret = str(raised.value).split("\n")
    assert first.startswith(said)
    offset = marked.index("«")
    column = offset - (text.rfind("\n", 0, offset) + 1)
    assert caret == " " * (2 + column) + "^"
    assert line[2:] in text.replace("\udcff", " ")


def test_a_nul_is_refused(ask):
    with pytest.raises(SqlError, match="null character"):
        list(ask.ask("SELECT 1; SELECT \0 2;"))


def test_what_has_no_place_has_no_caret(ask):
    with pytest.raises(SqlError, match="do not have the same number") as raised:
        list(ask.ask("SELECT 1 UNION SELECT 1, 2"))
    assert "\n" not in str(raised.value)


def test_a_long_line_is_shown_around_the_place(ask):
    text = f"SELECT {'1, ' * 500} * FORM mapping {'-- ' + 'x' * 500}"
    with pytest.raises(SqlError) as raised:
        list(ask.ask(text))
    _, line, caret = str(raised.value).split("\n")
    assert line[len(caret) - 1 :].startswith("FORM mapping")
    assert len(line) <= 2 + 100


def test_an_excerpt_cannot_play_with_the_terminal():
    assert excerpt("SELECT \x1b[2J\t1 x", 13) == "  SELECT  [2J 1 x\n               ^"


@given(
    words=st.lists(st.sampled_from([*PARTS, "path", "mapping", "FROM", "(", ")", ","]), max_size=8)
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_gets_an_answer_or_an_error_with_its_place(ask, words):
    text = " ".join(words)
    try:
        answers = list(ask.ask(text))
    except SqlError as error:
        said = str(error).split("\n")
        assert len(said) in {1, 3}
        if len(said) == 3:
            assert len(said[2]) <= len(said[1]) + 1
    else:
        assert len(answers) == len(split(text))
