"""Targets: text that people type or paste: configuration, lines of CRIU's log, SQL."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from datetime import timedelta
from typing import TYPE_CHECKING
from unittest.mock import patch

from irmapdb import queries
from irmapdb.commands import render
from irmapdb.commands.answers import Form, print_answer
from irmapdb.commands.keys import parse_keys, spellings
from irmapdb.commands.sql import parse_parameter, resolve
from irmapdb.config import HookConfig, load_config, with_environment
from irmapdb.errors import ConfigError, DatabaseError, SqlError, UsageError
from irmapdb.model import printable
from irmapdb.store.ask import Ask
from tests.fuzz.scratch import scratch
from tests.fuzz.target import Target, check, check_text, refusal
from tests.support.scenario import write_scenario

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from irmapdb.commands.keys import Key
    from irmapdb.store.ask import Answer

__all__ = ["TARGETS"]

# --- configuration ------------------------------------------------------------------------------


class _Config:
    """Reads each input as a configuration file, and as the hook's environment."""

    def __init__(self) -> None:
        self._path = scratch() / "irmapdb.toml"

    def __call__(self, data: bytes) -> None:
        self._path.write_bytes(data)
        with refusal(ConfigError):
            config = load_config(self._path)
            for path in (*config.scan_paths, *config.hints, *config.skip_paths):
                check(path.startswith(b"/") and b"\0" not in path, f"scan path {path!r}")
            _check_hook(config.hook)
            keep = config.retention
            check(keep.keep_runs > 0 and keep.keep_rows > 0, "keeps no row")
            check(keep.stale_older_than >= timedelta(0), "the age is negative")
            check(config.walkable("ext4") or "ext4" in config.skip_filesystems, "ext4")
        text = os.fsdecode(data)
        for name in ("TIMEOUT", "STRICT", "DB"):
            with refusal(ConfigError):
                _check_hook(with_environment(HookConfig(), {f"IRMAPDB_HOOK_{name}": text}))


def _check_hook(hook: HookConfig) -> None:
    check(0 < hook.timeout_s < float("inf"), f"a time limit of {hook.timeout_s}")
    check(
        hook.db is None or os.fsencode(hook.db).startswith(b"/"), f"a relative directory {hook.db}"
    )


_CONFIG = b"""\
[scan]
paths = ["/srv"]
hints = ["/etc", "/var/log"]
skip-filesystems = ["nfs4"]
[hook]
timeout = 10
strict = false
db = "/var/lib/irmapdb"
[retention]
automatic = true
keep-runs = 1000
keep-rows = 200000
stale-older-than = "30d"
unused-older-than = "90d"
"""


def _config_seeds() -> Iterator[bytes]:
    yield _CONFIG
    for line in _CONFIG.splitlines(keepends=True):
        yield b"[scan]\n" + line
        yield b"[hook]\n" + line
        yield b"[retention]\n" + line
    yield from (b"12.5", b"yes", b"/var/lib", b"1e400")


# --- keys of lookup -----------------------------------------------------------------------------

_KEY_LINES = (
    "fe00000:2e3",
    "254:0 739",
    "739",
    "/etc/passwd",
    "0x2e3",
    "/srv/caf\\xe9",
    "(00.012345) irmap: Resolving fe00000:2e3 path",
    "(00.012345)   1234: irmap: Resolving 48:824f9bb path",
    "(00.112345) fsnotify: wd: wd 0x1 s_dev 0xfe00000 i_ino 0x2e3 mask 0x800afce",
    "(00.112345) Error (criu/fsnotify.c:288): fsnotify: Handle 0x48:0x824f9bb cannot be opened",
    "(00.112345) fsnotify: \t\tHandle 0xfe00000:0x2e3 is openable",
    "(00.112345) Error (criu/fsnotify.c:300): fsnotify: Can't dump that handle",
    "(00.112345) irmap: Pre-cache fe00000:2e3",
    "(00.112345) Error (criu/fsnotify.c:1): Can't open file handle for 0xfe00000:0x2e3",
    "(00.112345) Error (criu/files-reg.c:1): Unable to open (null)",
)


def _keys(data: bytes) -> None:
    text = os.fsdecode(data)
    for arguments in ([text], text.split()):
        with refusal(UsageError):
            for key in parse_keys(arguments):
                _check_key(key)
    if b"\0" not in data:
        for path in (data, b"/" + data):
            shown = printable(path)
            check_text(shown)
            check(path in set(spellings(os.fsencode(shown))), f"{path!r} cannot be read back")


def _check_key(key: Key) -> None:
    given = [one for one in (key.key, key.ino, key.path) if one is not None]
    check(len(given) == 1, f"{key}: not one thing")
    if key.key is not None:
        check(0 <= key.key.kdev < 1 << 32 and 0 <= key.key.ino < 1 << 64, f"{key}: too large")
        (again,) = parse_keys([str(key.key)])
        check(again.key == key.key, f"{key}: came back as {again}")
    if key.ino is not None:
        check(0 <= key.ino < 1 << 64, f"{key}: too large")
    if key.path is not None:
        check(key.path.startswith(b"/"), f"{key}: no path")


def _keys_seeds() -> Iterator[bytes]:
    for line in _KEY_LINES:
        yield line.encode()
    yield "\n".join(_KEY_LINES).encode()


# --- SQL ----------------------------------------------------------------------------------------


class _Terminal(io.TextIOWrapper):
    """A standard output whose bytes can be looked at."""

    def __init__(self, *, terminal: bool) -> None:
        self.bytes = io.BytesIO()
        super().__init__(self.bytes, "utf-8", "surrogateescape", newline="")
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    def text(self) -> str:
        self.flush()
        return self.bytes.getvalue().decode("utf-8", "surrogateescape")


def _without_colour() -> AbstractContextManager[object]:
    """Colours of ours would be control characters, beside those of the input."""
    return patch.dict(os.environ, NO_COLOR="1")


class _Sql:
    """Asks each input of one database, which must stay as it is."""

    _ROWS = 50
    _TIME_S = 2.0
    _LOOK_AGAIN = 1000

    def __init__(self) -> None:
        self._directory = scratch()
        self._path = self._directory / "irmap.db"
        write_scenario(self._path)
        self._digest = self._seen()
        self._ask = Ask.open(self._path, path_text=render.printable)
        self._names = set(os.listdir(self._directory))
        self._runs = 0

    def __call__(self, data: bytes) -> None:
        text, _, given = os.fsdecode(data).partition("\n-- ")
        with refusal(SqlError, UsageError, DatabaseError):
            values = dict(map(parse_parameter, given.split("\n"))) if given else {}
            text, values = resolve(text, values)
            for answer in self._ask.ask(text, values, limit=self._ROWS, timeout_s=self._TIME_S):
                self._look_at(answer)
        self._runs += 1
        if self._runs % self._LOOK_AGAIN == 1:
            check(self._seen() == self._digest, "the database has changed")
        check(set(os.listdir(self._directory)) == self._names, "there is a new file")

    def _seen(self) -> str:
        return hashlib.sha256(self._path.read_bytes()).hexdigest()

    def _look_at(self, answer: Answer) -> None:
        check(len(answer.rows) <= self._ROWS, "more rows than the limit")
        check(all(len(row) == len(answer.columns) for row in answer.rows), "a short row")
        for form in Form:
            # At a terminal, which may get no control character; JSON for a program.
            terminal = form is not Form.JSON
            out = _Terminal(terminal=terminal)
            with _without_colour(), contextlib.redirect_stdout(out):
                print_answer(answer, form)
            if terminal:
                check_text(out.text().replace("\r\n", "\n"))
            elif answer.columns:
                self._check_json(answer, out.text())

    def _check_json(self, answer: Answer, text: str) -> None:
        rows = json.loads(text)
        check(len(rows) == len(answer.rows), "another number of rows")
        for row in rows:
            check(len(row) == len(answer.columns), f"columns {answer.columns}, and of JSON {row}")


def _sql_seeds() -> Iterator[bytes]:
    for saved in queries.SAVED.values():
        yield saved.name.encode()
        given = [
            f"{name}={1 if value is None else value}" for name, value in saved.parameters.items()
        ]
        yield (saved.name + "".join(f"\n-- {one}" for one in given[:1])).encode()
        yield saved.sql.encode()
    yield from (
        b"SELECT 1; SELECT 2 AS a, 3 AS a",
        b"SELECT path || 'x', hex_ino(dev, ino), path_text(path), kdev('254:0') FROM mapping",
        b"SELECT * FROM live_mappings ORDER BY path COLLATE NOCASE DESC LIMIT 3",
        b"SELECT :a, :b\n-- a=1\nb=x",
        b"PRAGMA table_info(mapping)",
        b"ATTACH 'x.db' AS x",
        b"WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i<9) SELECT i FROM c",
        b"SELECT CAST(x'1b5b324a' AS TEXT) AS a, x'ff00' AS \"b\nc\", 1e999, -0.0",
        b"INSERT INTO mapping DEFAULT VALUES",
        b"VACUUM INTO 'copy.db'",
        b"SELECT json_group_array(name) FROM pragma_function_list",
    )


_SQL_WORDS = tuple(
    word.encode()
    for word in (
        *("SELECT ", " FROM ", " WHERE ", " GROUP BY ", " ORDER BY ", " UNION ALL ", " JOIN "),
        *("WITH RECURSIVE ", "EXPLAIN ", "PRAGMA ", "ATTACH ", "VACUUM INTO ", "CREATE TABLE "),
        *("INSERT INTO ", "DELETE FROM ", "UPDATE ", "DROP ", "BEGIN", "COMMIT", "VALUES(", ";"),
        *("mapping", "live_mappings", "watch", "run", "change", "image_entry", "sqlite_master"),
        *("randomblob(", "zeroblob(", "printf('%.*c',", "replace(", "group_concat(", "hex("),
        *("load_extension(", "writefile(", "readfile(", "edit(", "char(27)", "x'ff'", "'", '"'),
        *(":a", "?1", "@a", "$a", "--", "/*", "*/", "\n-- a=", "NULL", "9223372036854775808"),
        *("path", "dev", "ino", "handle", " AS ", " COLLATE NOCASE", " LIKE ", " GLOB ", "||"),
    )
)


def _lazily(make: type[_Config | _Sql]) -> Callable[[bytes], None]:
    """Built at the first input: a target that is not run needs no directory."""
    made: list[_Config | _Sql] = []

    def run(data: bytes) -> None:
        if not made:
            made.append(make())
        made[0](data)

    return run


TARGETS = (
    Target(
        "config",
        _lazily(_Config),
        _config_seeds,
        tuple(
            word.encode()
            for word in (
                *("[scan]\n", "[hook]\n", "[retention]\n", "paths", "hints", "skip-filesystems"),
                "skip-paths",
                *("timeout", "strict", "db", "automatic", "keep-runs", "keep-rows", " = "),
                *("stale-older-than", "unused-older-than", '"30d"', "true", "1e999", "nan", "-inf"),
                *('"/"', '"\\u001b"', "2026-11-28T00:00:00Z", "[[hook]]", "{", "}", '"""'),
            )
        ),
    ),
    Target(
        "log-line",
        _keys,
        _keys_seeds,
        tuple(
            word.encode()
            for word in (
                *("Resolving ", " path", "irmap: ", "fsnotify: ", "(00.012345) ", "Handle 0x"),
                *("s_dev 0x", " i_ino 0x", "wd: wd 0x", "Pre-cache ", "cannot be opened", "0x"),
                *(":0x", "ffffffffffffffff", "18446744073709551616", "4096:0 ", "\\x95", "\\u2028"),
                *("\\U000e0001", "\x95", "\u0095", "\u2028", "\\\\"),
            )
        ),
        1024,
    ),
    Target("sql", _lazily(_Sql), _sql_seeds, _SQL_WORDS, 2048),
)
