"""A work dir of another user, and every command that opens a database there.

A command runs in a forked child, which SIGALRM ends if it hangs, with the modules that are loaded
already.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from irmapdb import commands
from irmapdb.criu import hook
from irmapdb.image.cache import encode_cache
from irmapdb.model import CacheEntry
from irmapdb.store.database import Store
from tests.support.cli import Done

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "COMMANDS",
    "ENTRY",
    "READERS",
    "TENANT",
    "WRITERS",
    "Done",
    "fill",
    "give_away",
    "hot_journal",
    "run_command",
    "run_forked",
]

TENANT = 54321
"""A uid that no user has here."""

NOW = datetime(2026, 11, 23, tzinfo=UTC)
ENTRY = CacheEntry(254 << 20, 2, b"/srv/a")
_HANGS_AFTER_S = 60
_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")

READERS = {
    "show": ("show", "irmap.db"),
    "sql": ("sql", "SELECT count(*) FROM mapping"),
    "audit": ("audit",),
    "lookup": ("lookup", "/srv/a"),
    "prune --dry-run": ("prune", "--dry-run"),
    "export": ("export", "OUT/exported"),
    "convert": ("convert", "irmap.db", "OUT/converted.json"),
    "db current": ("db", "current"),
    "db backup": ("db", "backup", "OUT/backup.db"),
}
WRITERS = {
    "audit --fix": ("audit", "--fix", "--root", "/"),
    "prune": ("prune",),
    "prune --vacuum": ("prune", "--vacuum"),
    "import": ("import", "OUT/image"),
    "db upgrade": ("db", "upgrade"),
    "pre-dump": ("pre-dump", "-t", "PID"),
    "dump": ("dump", "-t", "PID"),
    "hook": (),
}
COMMANDS = READERS | WRITERS


def fill(path: Path, *entries: CacheEntry) -> None:
    """Put entries into a database, which is made if it has to be."""
    with Store.open(path, create=True) as store, store.step() as step:
        step.import_entries(entries or (ENTRY,), NOW)


def give_away(directory: Path, uid: int = TENANT) -> None:
    """Give a directory and all below it to a user."""
    for path in (directory, *directory.rglob("*")):
        os.chown(path, uid, uid, follow_symlinks=False)


def run_command(name: str, work: Path) -> Done:
    """Run a command of COMMANDS with `work` as the work dir."""
    out = Path(tempfile.mkdtemp(prefix=f"{work.name}-", dir=work.parent))
    (out / "image").write_bytes(encode_cache([ENTRY._replace(path=b"/srv/imported")]))
    with subprocess.Popen(["sleep", "600"]) as task:
        try:
            words = {"PID": str(task.pid)}
            arguments = [
                words.get(word, word.replace("OUT/", f"{out}/")) for word in COMMANDS[name]
            ]
            if name == "hook":
                return run_forked(lambda: hook.attend(task.pid, ""), work)
            return run_irmapdb(arguments, work)
        finally:
            task.kill()


def run_irmapdb(arguments: Sequence[str], work: Path) -> Done:
    """Run `irmapdb` with `work` as the cwd."""

    def run() -> int:
        sys.argv = ["irmapdb", *arguments]
        try:
            commands.main()
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0

    return run_forked(run, work)


def run_forked(function: Callable[[], int], work: Path) -> Done:
    """Run a function in a child, with `work` as the cwd."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            _be_child(function, work, out.fileno(), err.fileno())
        _, status = os.waitpid(child, 0)
        said = [
            os.pread(file.fileno(), 1 << 20, 0).decode("utf-8", "backslashreplace")
            for file in (out, err)
        ]
    return Done(os.waitstatus_to_exitcode(status), *said)


def _be_child(function: Callable[[], int], work: Path, out: int, err: int) -> None:
    code = 99
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_HANGS_AFTER_S)
        os.chdir(work)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        streams = [open(fd, "w", encoding="utf-8", closefd=False) for fd in (1, 2)]  # noqa: SIM115
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stdout, sys.stderr = streams
        code = function()
        for stream in (sys.stdout, sys.stderr, *streams):
            stream.flush()
    except BaseException:  # noqa: BLE001 the traceback is the answer
        import traceback  # noqa: PLC0415 in a child that ends

        os.write(2, traceback.format_exc().encode("utf-8", "backslashreplace"))
    finally:
        os._exit(code)


def hot_journal(database: Path, super_journal: Path) -> bytes:
    """A journal that a crash could have left, and that belongs to a super-journal.

    SQLite rolls it back, then deletes the super-journal. The format:
    https://www.sqlite.org/fileformat.html#the_rollback_journal.
    """
    with closing(sqlite3.connect(f"file:{database}?mode=ro&immutable=1", uri=True)) as raw:
        (page_size,) = raw.execute("PRAGMA page_size").fetchone()
        (pages,) = raw.execute("PRAGMA page_count").fetchone()
    header = _JOURNAL_MAGIC + struct.pack(">IIIII", 0, 0, pages, 512, page_size)
    name = os.fsencode(super_journal)
    lock_page = 0x40000000 // page_size + 1
    trailer = struct.pack(">I", lock_page) + name
    trailer += struct.pack(">II", len(name), sum(name)) + _JOURNAL_MAGIC
    return header.ljust(512, b"\0") + trailer
