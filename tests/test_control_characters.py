"""A terminal gets printable characters, a pipe or a file gets every byte: of every command."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from irmapdb.image import cache
from irmapdb.model import CacheEntry, from_printable, printable
from irmapdb.store.database import Store
from tests.support.cli import irmapdb
from tests.support.features import require_root
from tests.support.terminal import at_terminal
from tests.support.watcher import Watcher

# Moves the cursor, ends a line, is half of UTF-8, is a C1 control as a byte and as a character,
# deletes, reorders, hides.
EVIL = b"/\x1b[2Jx\n\r\xe9\x95" + "\x95\x7f\u202e\u200b\\".encode()
TITLE = 'SELECT char(27) || "\x1b[2J" AS "\x1b[31m\x7f\x9b"'


@pytest.fixture
def place(tmp_path: Path) -> Path:
    entries = [CacheEntry(1, 2, EVIL), CacheEntry(1, 3, b"/plain")]
    (tmp_path / "irmap-cache").write_bytes(cache.encode_cache(entries))
    with Store.open(tmp_path / "irmap.db", create=True) as store, store.step() as step:
        step.import_entries(entries, datetime.now(UTC))
    return tmp_path


def _is_printable(said: bytes) -> bool:
    return all(line.isprintable() for line in said.decode().split("\n"))


_WORDS = [
    *("show irmap-cache", "show irmap-cache --json", "show irmap-cache --pretty", "show irmap.db"),
    *("convert irmap-cache - --to json", "convert irmap-cache -", "export -"),
    *("audit --all", "audit --all --csv", "audit --all --json", "audit --all --evidence"),
    *("lookup 2", "lookup 2 --json", "lookup EVIL", "sql TITLE --print"),
    *("sql live_mappings", "sql SELECT_ALL", "sql SELECT_ALL --csv", "sql SELECT_ALL --json"),
    *("sql TITLE", "sql TITLE --csv", "sql TITLE --json", "sql SELECT_ALL;TITLE --csv"),
    *("db current --json", "lookup EVIL/nothing", "prune --dry-run --json"),
]


@pytest.mark.parametrize("words", _WORDS)
def test_a_terminal_gets_only_printable_characters(place: Path, words: str) -> None:
    told = {"EVIL": os.fsdecode(EVIL), "TITLE": TITLE, "SELECT_ALL": "SELECT path FROM mapping"}
    arguments = []
    for word in words.split():
        for name, text in told.items():
            word = word.replace(name, text)  # noqa: PLW2901 one after the other
        arguments.append(word)
    code, said = at_terminal(*arguments, cwd=place)
    assert code in {0, 1, 2, 3}
    assert b"Traceback" not in said
    assert said
    assert _is_printable(said), said


def test_a_terminal_gets_no_binary(place: Path) -> None:
    for words in (("convert", "irmap-cache", "-"), ("export", "-")):
        code, said = at_terminal(*words, cwd=place)
        assert (code, said.count(b"\n")) == (2, 1)
        assert b"an image is binary, and stdout is a terminal; redirect it" in said


def test_the_reason_for_a_watch_at_a_terminal(tmp_path: Path) -> None:
    require_root()
    directory = os.path.join(os.fsencode(tmp_path), EVIL.strip(b"/"))
    os.mkdir(directory)
    with Watcher() as watcher:
        watcher.add_inotify(Path(os.fsdecode(directory)))
        pid = str(watcher.pid)
        for words in (
            ("pre-dump", "-t", pid),
            ("dump", "-t", pid),
            ("pre-dump", "-t", pid, "-v4"),
            ("check", "-t", pid, "-v"),
            ("check", "-t", pid, "--all-rows"),
            ("ps", "-t", pid),
            ("pre-dump", "-t", pid, "--json"),
            ("check", "-t", pid, "--json"),
            ("ps", "-t", pid, "--json"),
            ("audit", "-t", pid, "--all", "--csv"),
        ):
            code, said = at_terminal(*words, cwd=tmp_path)
            assert code in {0, 3}, said
            assert _is_printable(said), said
            if "--json" not in words:
                assert printable(directory).encode() in said
    (tmp_path / os.fsdecode(directory)).rmdir()


def _piped(place: Path, *words: str) -> bytes:
    command = [sys.executable, "-m", "irmapdb", *words]
    return subprocess.run(command, cwd=place, stdout=subprocess.PIPE, check=False).stdout


@pytest.mark.parametrize("words", ["audit --all --csv", "sql live_mappings --csv"])
def test_a_pipe_gets_every_byte_and_the_terminals_form_reads_back(place: Path, words: str) -> None:
    arguments = words.replace("live_mappings", "SELECT*FROM/**/mapping").split()

    def paths(said: bytes) -> list[str]:
        text = io.StringIO(said.decode("utf-8", "surrogateescape"), newline="")
        return [row["path"] for row in csv.DictReader(text)]

    names = {EVIL, b"/plain"}
    assert {os.fsencode(path) for path in paths(_piped(place, *arguments))} == names
    _, said = at_terminal(*arguments, cwd=place)
    assert {from_printable(path) for path in paths(said)} == names


def test_json_is_one_document_at_a_terminal_too(place: Path) -> None:
    for words in (("show", "irmap-cache", "--json"), ("audit", "--all", "--json")):
        _, said = at_terminal(*words, cwd=place)
        assert json.loads(said) is not None
        assert said == _piped(place, *words) or words[0] == "audit", "but for its time"
    document = json.loads(at_terminal("show", "irmap-cache", "--json", cwd=place)[1])
    assert os.fsencode(document["entries"][0]["path"]) == EVIL


def test_the_printed_form_of_a_path_is_a_key_of_its_inode(place: Path) -> None:
    path = printable(EVIL)
    assert path in irmapdb("show", place / "irmap-cache").out
    (found,) = json.loads(irmapdb("lookup", path, "--json", "-W", place).out)
    assert [one["ino"] for one in found["inodes"]] == [2]
