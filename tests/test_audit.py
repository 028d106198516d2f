"""The output of the audit for people and programs; and that it only reads."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from irmapdb.audit.path_look import look_at_path
from irmapdb.kernel.proof import identify
from irmapdb.kernel.root import open_root
from irmapdb.model import CacheEntry, Identity, Resolved, Source
from irmapdb.store.database import Store
from tests.support.features import require_program, require_root

_NAMES = [b"plain", b"caf\xe9", b"new\nline", b'"quoted", \xff']


def run(*words: str | bytes | Path) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "irmapdb", "audit", *map(os.fsdecode, words)]
    return subprocess.run(command, check=False, capture_output=True)


@pytest.fixture
def rename() -> Iterator[Callable[[bytes, bytes], None]]:
    """Renames, and has the kernel know the new name until the test is over."""
    with ExitStack() as stack:

        def rename(old: bytes, new: bytes) -> None:
            os.rename(old, new)
            stack.callback(os.close, os.open(new, os.O_PATH))

        yield rename


class Case:
    """Files with odd names, a database of them, proved an hour ago, and an imported one."""

    def __init__(self, tmp_path: Path) -> None:
        self.top = os.fsencode(tmp_path / "tree")
        os.mkdir(self.top)
        self.paths = [self.top + b"/" + name for name in _NAMES]
        self.work = tmp_path / "work"
        self.work.mkdir()
        self.database = self.work / "irmap.db"
        now = datetime.now(UTC)
        imported = self.top + b"/imported"
        for path in (*self.paths, imported):
            os.close(os.open(path, os.O_CREAT))
        with open_root(os.getpid()) as root:
            self.known = {path: identify(root, path) for path in (*self.paths, imported)}
        proved = [Resolved(self.known[path], path, Source.SCAN) for path in self.paths]
        with Store.open(self.database, create=True) as store, store.step() as tx:
            tx.prove(proved, now - timedelta(hours=1))
            tx.import_entries([CacheEntry(*self.known[imported].key, imported)], now)

    def files(self) -> dict[str, bytes]:
        return {one.name: one.read_bytes() for one in self.work.iterdir()}


@pytest.fixture
def case(tmp_path: Path) -> Case:
    require_root()  # opening handles
    return Case(tmp_path)


def test_an_audit_without_findings(case: Case) -> None:
    before = case.files()
    done = run("-W", case.work)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"5 mappings checked in our own root: all live ones hold" in done.stdout
    assert b"1 of the valid ones by number alone" in done.stdout
    assert case.files() == before


def test_findings_as_table_json_and_csv(case: Case, rename) -> None:
    gone, moved, *_ = case.paths
    os.unlink(gone)
    away = case.top + b"/away \xfe\n"
    rename(moved, away)
    before = case.files()

    table = run("--db", case.database)
    assert table.returncode == 3
    lines = table.stdout.decode().splitlines()
    assert lines[-1].startswith("5 mappings checked in our own root: 2 no longer hold; 1 of")
    assert any("caf\\xe9 → " in line and line.endswith("/away \\xfe\\n") for line in lines)
    evidence = run("--db", case.database, "--evidence").stdout.decode()
    assert f"expected  {_words(case.known[gone])}" in evidence

    document = json.loads(run("--db", case.database, "--json").stdout)
    assert document["stale"] == 2
    assert document["counts"] == {
        "valid": {"live": 3, "marked_stale": 0},
        "moved": {"live": 1, "marked_stale": 0},
        "deleted": {"live": 1, "marked_stale": 0},
    }
    told = {os.fsencode(one["path"]): one for one in document["mappings"]}
    assert set(told) == {gone, moved}
    assert [os.fsencode(path) for path in told[moved]["moved_to"]] == [away]
    assert told[gone]["ino"] == case.known[gone].ino
    assert told[gone]["changed_at"] > told[gone]["validated_at"]

    done = run("--db", case.database, "--csv", "--all")
    text = done.stdout.decode("utf-8", "surrogateescape")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert {os.fsencode(row["path"]): row["verdict"] for row in rows} == {
        gone: "deleted",
        moved: "moved",
        **dict.fromkeys((*case.paths[2:], case.top + b"/imported"), "valid"),
    }
    (row,) = (row for row in rows if row["verdict"] == "moved")
    assert os.fsencode(row["moved_to"]) == away
    assert case.files() == before, "it wrote"


def test_an_audit_that_writes_deletes_old_rows(case: Case) -> None:
    (case.work / "irmapdb.toml").write_text("[retention]\nkeep-runs = 2\n")
    for path in case.paths:
        os.unlink(path)
        config = case.work / "irmapdb.toml"
        done = run("-W", case.work, "--root", "/", "--fix", "--config", config)
        assert b"1 change, written" in done.stdout, done
    with Store.open_readonly(case.database) as store:
        assert [one.id for one in store.runs()] == [3, 4]


def _words(identity: Identity) -> str:
    major, minor = identity.kdev >> 20, identity.kdev & 0xFFFFF
    return f"{major}:{minor} inode {identity.ino} handle {identity.handle}"


def test_a_path_that_cannot_be_read_has_its_own_verdict(case: Case) -> None:
    require_program("setpriv", package="util-linux")
    closed = case.top + b"/closed"
    hidden = closed + b"/file"
    os.mkdir(closed)
    os.close(os.open(hidden, os.O_CREAT))
    with open_root(os.getpid()) as root:
        known = [Resolved(identify(root, hidden), hidden, Source.SCAN)]
    with Store.open(case.database, create=False) as store, store.step() as tx:
        tx.prove(known, datetime.now(UTC))
        tx.prove([known[0]._replace(path=b"/elsewhere", mntns=7)], datetime.now(UTC))
    os.chmod(closed, 0)

    bound = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")

    def look(*words: str) -> subprocess.CompletedProcess[str]:
        command = [*bound, sys.executable, "-m", "irmapdb", "audit", "--db", case.database, *words]
        return subprocess.run(command, check=False, capture_output=True, text=True)

    table = look()
    assert table.returncode == 3
    told = "7 mappings checked in our own root: 2 could not be checked, all other live ones hold"
    assert table.stdout.splitlines()[-1].startswith(told)
    assert "/closed/file (not looked at: Permission denied)" in table.stdout
    assert "found     not looked at: Permission denied" in look("--evidence").stdout
    document = json.loads(look("--json").stdout)
    assert (document["stale"], document["not_looked_at"]) == (0, 2)
    assert {one["path"]: one["not_looked_at"] for one in document["mappings"]} == {
        os.fsdecode(hidden): "Permission denied",
        "/elsewhere": "the path starts at another root",
    }
    os.unlink(case.paths[0])
    assert "1 no longer holds, 2 could not be checked;" in look().stdout


def test_only_the_chosen_mappings_are_checked(case: Case, rename) -> None:
    gone, moved, *_ = case.paths
    os.unlink(gone)
    rename(moved, case.top + b"/away")
    kdev = case.known[gone].kdev
    device = f"{kdev >> 20}:{kdev & 0xFFFFF}"

    def chosen(*words: str | bytes) -> tuple[int, set[bytes]]:
        done = run("--db", case.database, "--json", "--all", *words)
        found = json.loads(done.stdout)["mappings"]
        return done.returncode, {os.fsencode(one["path"]) for one in found}

    assert chosen("--only", "deleted") == (3, {gone})
    assert chosen("--only", "replaced") == (3, set())
    assert chosen("--path", b"*caf\xe9") == (3, {moved})
    assert chosen("--path", rb"*caf\xe9") == (3, {moved}), "as the table prints it"
    assert chosen("--path", b"*imp*", "--path", b"*new?line") == (
        0,
        {case.top + b"/imported", case.paths[2]},
    )
    assert chosen("--dev", device)[1] == set(case.known)
    assert chosen("--dev", "4095:1") == (0, set())
    # The imported one was never proved.
    assert chosen("--older-than", "90m") == (0, {case.top + b"/imported"})
    assert chosen("--older-than", "30m")[1] == set(case.known)
    assert chosen("--older-than", "999999d") == chosen("--older-than", "90m")


def test_a_chosen_verdict_limits_the_list_and_not_the_counts(case: Case, rename) -> None:
    gone, moved, *_ = case.paths
    os.unlink(gone)
    rename(moved, case.top + b"/away")

    done = run("--db", case.database, "--only", "valid")
    assert done.returncode == 3
    last = done.stdout.decode().splitlines()[-1]
    assert last.startswith("5 mappings checked in our own root: 2 no longer hold;")
    assert last.endswith("; shown: 3 valid")
    assert run("--db", case.database, "--only", "gone").stdout.endswith(b"; shown: none\n")
    document = json.loads(run("--db", case.database, "--only", "valid", "--json").stdout)
    assert (document["checked"], document["stale"], len(document["mappings"])) == (5, 2, 3)

    mended = run("--db", case.database, "--fix", "--root", "/", "--only", "moved")
    assert (mended.returncode, mended.stdout.count(b"moved: ")) == (3, 1)
    assert b"1 change, written" in mended.stdout
    # The old path is marked stale now: that is for --all to list.
    assert b"caf" not in run("--db", case.database, "--only", "moved").stdout
    assert b"caf" in run("--db", case.database, "--only", "moved", "--all").stdout


def test_a_selection_of_nothing_says_so(case: Case, tmp_path: Path) -> None:
    for words in (("--path", "nope"), ("--dev", "4095:1")):
        done = run("--db", case.database, *words)
        assert (done.returncode, done.stdout) == (0, b"")
        assert done.stderr == b"nothing to check: none of 5 mappings is selected\n"
    document = json.loads(run("--db", case.database, "--path", "nope", "--json").stdout)
    assert (document["stored"], document["checked"]) == (5, 0)
    Store.open(tmp_path / "empty.db", create=True).close()
    done = run("--db", tmp_path / "empty.db")
    assert done.stderr == b"nothing to check: the database has no mappings\n"


def test_csv_has_its_header_always(case: Case) -> None:
    all_of_it = run("--db", case.database, "--csv", "--all").stdout
    header = all_of_it.partition(b"\r\n")[0] + b"\r\n"
    assert header.startswith(b"verdict,id,path,")
    assert run("--db", case.database, "--csv").stdout == header
    assert run("--db", case.database, "--csv", "--path", "nope").stdout == header


def test_evidence_is_sorted_and_set_apart(case: Case, rename) -> None:
    gone, moved, *_ = case.paths
    os.unlink(gone)
    rename(moved, case.top + b"/away")
    text = run("--db", case.database, "--evidence").stdout.decode()
    counts, one, other, summary = text.split("\n\n")
    assert counts.startswith("VERDICT")
    assert one.startswith("moved ")
    assert other.startswith("deleted ")
    assert "5 mappings checked" in summary
    nothing = run("--db", case.database, "--evidence", "--path", "*imported").stdout.decode()
    assert nothing.count("\n\n") == 1
    assert "\n\n\n" not in nothing


def test_the_hint_at_a_container_is_for_many(case: Case) -> None:
    with open_root(os.getpid()) as root:
        here = identify(root, case.top)
    nowhere = [
        Resolved(Identity(1 << 20, n, here.handle), f"/nowhere/{n}".encode(), Source.SCAN)
        for n in range(10)
    ]
    with Store.open(case.database, create=False) as store, store.step() as tx:
        tx.prove(nowhere[:9], datetime.now(UTC))
    assert b"-t PID" not in run("--db", case.database).stderr
    with Store.open(case.database, create=False) as store, store.step() as tx:
        tx.prove(nowhere, datetime.now(UTC))
    assert b"-t PID" in run("--db", case.database).stderr
    assert b"-t PID" not in run("--db", case.database, "--root", "/").stderr


def test_fix_writes_and_lists_its_changes(case: Case, rename) -> None:
    gone, moved, *_ = case.paths
    os.unlink(gone)
    rename(moved, case.top + b"/away")
    done = run("--db", case.database, "--fix", "--root", "/", "--json")
    assert done.returncode == 3
    document = json.loads(done.stdout)
    told = {(one["kind"], os.fsencode(one["path"])) for one in document["changes"]}
    assert told == {("moved", case.top + b"/away"), ("stale", gone)}
    assert document["run"] == 1
    again = run("--db", case.database, "--fix", "--root", "/")
    assert again.returncode == 0
    assert b"nothing to write" in again.stdout
    table = run("--db", case.database, "--all").stdout.decode()
    assert "marked gone" in table


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--only", "nonsense"), 2, "there are valid, moved"),
        (("--dev", "fe00000"), 2, "254:0"),
        (("--older-than", "soon"), 2, "no span of time"),
        (("--json", "--csv"), 2, "two forms"),
        (("-t", "1", "--root", "/"), 2, "each name a root"),
        (("--root", "/nowhere"), 1, "/nowhere"),
        (("--dev", f"{'1' * 5000}:1"), 2, "no device; write it"),
        (("--dev", "99999:0"), 2, "larger than any device"),
        (("--dev", "0:1048576"), 2, "larger than any device"),
        (("-t", "4194304"), 1, "no process 4194304"),
        (("--db", "/nowhere.db"), 1, "no such database"),
    ],
)
def test_errors(case: Case, words: tuple[str, ...], code: int, message: str) -> None:
    done = run("--db", case.database, *words)
    assert done.returncode == code
    assert message in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1
    assert done.stdout == b""


def test_a_time_that_python_does_not_know():
    """A tenant sets the time of a directory to the year 33658, which a tmpfs keeps."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as top, open_root(os.getpid()) as root:
        os.utime(top, ns=(0, 10**21))
        look = look_at_path(root, os.fsencode(top) + b"/gone")
    assert (look.found, look.changed_at) == (None, None)
