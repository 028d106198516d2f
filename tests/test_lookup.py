"""`irmapdb lookup`: all rows about an inode or a path."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime

import pytest

from irmapdb.commands.render import printable
from irmapdb.model import CacheEntry, InodeKey
from irmapdb.store.database import Store
from tests.support.cli import irmapdb
from tests.support.scenario import write_scenario

IN_CSV = "fe00000:2e3: device 254:0, inode 739"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("lookup")
    write_scenario(place / "irmap.db")
    return place


@pytest.fixture(autouse=True)
def here(place, monkeypatch):
    monkeypatch.chdir(place)


@pytest.mark.parametrize(
    "keys",
    [
        ("fe00000:2e3",),
        ("0xFE00000:0x2e3",),
        ("254:0", "739"),
        ("254:0 739",),
        ("254:0", "0x2e3"),
        ("739",),
        ("/srv/data/in.csv",),  # its old name
        ("/srv/data/in.csv.1",),
        ("/srv/data/in.csv.1/",),
        ("Resolving fe00000:2e3 path",),
        ("Resolving", "fe00000:2e3", "path"),
        ("(00.012345) irmap: Resolving fe00000:2e3 path",),
        ("(00.012345)   1234: irmap: Resolving fe00000:2e3 path\n",),
        ("irmap:", "Resolving", "fe00000:2e3", "path"),
        ("Warn  (criu/fsnotify.c:281): fsnotify: \tHandle 0xfe00000:0x2e3 cannot be opened",),
        ("(00.012345) fsnotify: \tHandle 0xfe00000:0x2e3 is openable",),
        ("Handle", "0xfe00000:0x2e3", "cannot", "be", "opened"),
        ("wd: wd 0x000001 s_dev 0xfe00000 i_ino            0x2e3 mask 0x000fff",),
        ("(00.1) fsnotify: wd: wd 0x000001 s_dev 0xfe00000 i_ino            0x2e3 mask 0x000fff",),
        ("(00.012345) fsnotify: mark: s_dev 0xfe00000 i_ino 0x000000000002e3 mask 0x000020",),
        ("irmap: Pre-cache fe00000:2e3 -> /srv/data/in.csv",),
        ("(00.000001) irmap: Irmap cache fe00000:2e3 -> /srv/Resolving 1:2 path",),
        ("irmap: Queue fe00000:2e3 for pre-dump",),
        ("irmap: \tchecking fe00000:2e3",),
        ("(00.012345) Error (criu/irmap.c:375): irmap: Failed to resolve fe00000:2e3",),
        ("irmap: \tfe00000:2e3 is invalid",),
        ("\t\tRestore inotify watch for 0xfe00000:0x000000000002e3 (via /proc/self/fd/7)",),
        ("fsnotify: Can't find suitable path for handle (dev 0xfe00000 ino 0x2e3): -2",),
        (
            (
                "Error (criu/fsnotify.c:737): fsnotify: Unable to open inotify via path "
                "/a (dev 0x1 ino 0x2) (dev 0xfe00000 ino 0x2e3): No such file or directory"
            ),
        ),
        (
            (
                "(00.007467)  26890: Error (criu/fsnotify.c:777): fsnotify: Failed to get path for "
                "inotify wd 0x1 (dev 0xfe00000 ino 0x2e3 mask 0x24)"
            ),
        ),
        ("fsnotify: Unsorted inotify watch 0x3 found (expected 0x1, dev 0xfe00000 ino 0x2e3)",),
        ("(00.012345) fsnotify: \tDumping /srv/data/in.csv as path for handle",),
        ("irmap: Revalidate stat for /srv/data/in.csv",),
        ("irmap: \tFound /srv/data/in.csv in cache",),
        ("inotify wd:1 ino:2e3 sdev:fe00000 mask:fff ignored_mask:0 fhandle-bytes:8",),
        ("fanotify ino:2e3 sdev:fe00000 mflags:0 mask:20 ignored_mask:0 fhandle-bytes:8",),
        ("irmap: Resolving fe00000:2e3 path\n\n(00.1) irmap: Queue fe00000:2e3 for pre-dump\n",),
    ],
    ids="|".join,
)
def test_an_inode_is_found_by_each_of_its_keys(keys):
    done = irmapdb("lookup", *keys)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(IN_CSV)
    for wanted in ("stale: gone", "/srv/data/in.csv.1", "worker", "3 to 4", "moved: "):
        assert wanted in done.out


def test_several_lines_are_several_keys():
    log = "irmap: Resolving fe00000:2e3 path\nirmap: Resolving fe00000:384 path\n254:0 742\n"
    for keys in ((log,), tuple(log.splitlines()), (log, "739")):
        out = irmapdb("lookup", *keys).out
        assert [one for one in ("2e3", "384", "2e6") if f"fe00000:{one}: device" in out] == [
            "2e3",
            "384",
            "2e6",
        ]


@pytest.mark.parametrize(
    "line",
    [
        "(00.012345) fsnotify: Opening fhandle fe00000:5eed0001000002e3...",
        "fsnotify: \t[fhandle] bytes 0x000008 type 0x000001 __handle 0x2e3:0x0",
        "(00.012345) Error (criu/fsnotify.c:284): fsnotify: \tCan't dump that handle",
        "Error (criu/fsnotify.c:510): fsnotify: Unable to open (null): Bad address",
        "mark: s_dev 0xfe00000 mnt_id  0x000021 mask 0x000020",
    ],
)
def test_a_line_that_names_no_inode_is_not_guessed_at(line):
    done = irmapdb("lookup", line)
    assert (done.code, done.out) == (2, "")
    assert "this line names no inode; give the line near it that has `Handle`" in done.err


@pytest.mark.parametrize(
    "key", ["Resolving fe00000:2e3 path 739", "Handle 0x1:0x2 was eaten", "see fe00000:2e3"]
)
def test_a_line_that_only_looks_like_a_line_of_the_log_is_refused(key):
    done = irmapdb("lookup", key)
    assert (done.code, done.out) == (2, "")
    assert "neither an inode nor a path" in done.err


def test_a_path_may_read_like_a_line_of_the_log():
    done = irmapdb("lookup", "/srv/irmap: Resolving fe00000:2e3 path")
    assert (done.code, done.out) == (3, "")


def test_a_path_stands_for_every_inode_that_had_it():
    done = irmapdb("lookup", "/etc/app.conf")
    assert "fe00000:2e5: device" in done.out
    assert "fe00000:2f8: device" in done.out
    assert "stale: replaced" in done.out


def test_a_number_stands_for_inodes_of_every_device_and_a_key_is_printed_once():
    assert irmapdb("lookup", "257").out.startswith("26:101: device 0:38")
    done = irmapdb("lookup", "739", "fe00000:2e3", "/srv/data/in.csv")
    assert done.out.count(IN_CSV) == 1


def test_odd_names_and_large_numbers():
    done = irmapdb("lookup", os.fsdecode(b"/srv/data/caf\xe9.txt"), "18446744073709551610")
    assert r"/srv/data/caf\xe9.txt" in done.out
    assert "29:fffffffffffffffa: device 0:41, inode 18446744073709551610" in done.out


def test_a_path_may_be_written_as_it_is_printed(tmp_path):
    database = tmp_path / "irmap.db"
    for name in ("/caf\\xe9.txt", "/srv/data/caf\\xe9.txt"):
        assert irmapdb("lookup", name).code == (0 if "srv" in name else 3)
    odd = [b"/a\n\t\\b\x1b", b"/l\xe2\x80\xaer", b"/c1\xc2\x85", b"/c1\x85", b"/x\\n"]
    with Store.open(database, create=True) as store, store.step() as step:
        entries = [CacheEntry(1, number, path) for number, path in enumerate([*odd, b"/x\n"], 10)]
        step.import_entries(entries, datetime.now(UTC))
    for number, path in enumerate(odd, 10):
        (found,) = json.loads(irmapdb("lookup", printable(path), "--json", "--db", database).out)
        assert [one["ino"] for one in found["inodes"]] == [number]
    # The text itself has precedence.
    (found,) = json.loads(irmapdb("lookup", "/x\\n", "--json", "--db", database).out)
    assert [one["ino"] for one in found["inodes"]] == [14]


@pytest.mark.parametrize("argument", ["", "  "])
def test_an_empty_key_is_wrong_usage(argument):
    assert irmapdb("lookup", argument).code == irmapdb("sql", argument).code == 2


@pytest.mark.parametrize("key", ["99999:1", "4096:0", "1:1048576"])
def test_a_device_that_there_cannot_be_is_no_hex(key):
    done = irmapdb("lookup", key, "4")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"irmapdb: {key}: larger than any device number")


@pytest.mark.parametrize("words", [(f"{'1' * 5000}:1", "5"), ("1" * 5000,)])
def test_thousands_of_digits_are_no_key(words):
    done = irmapdb("lookup", *words)
    assert (done.code, done.out) == (2, "")
    assert "1: neither an inode nor a path from /; " in done.err.replace(":1:", ":")


@pytest.mark.parametrize(
    "inode",
    ["fe00000:2e3", "FE00000:2E3", "254:0 739", "739", "0x2e3", "Resolving fe00000:2e3 path"],
)
def test_the_saved_history_takes_the_keys_of_lookup(inode):
    done = irmapdb("sql", "history", "-p", f"inode={inode}", "--json")
    assert [one["what"] for one in json.loads(done.out)] == ["imported", "moved"]


def test_a_large_inode_number_has_a_history():
    done = irmapdb("sql", "history", "-p", "inode=18446744073709551610", "--json")
    assert json.loads(done.out)


_INODES = "write fe00000:2e3, 254:0 739 or 739"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("history", "-p", "inode=x"), f"-p inode=x: not one inode; {_INODES}\n"),
        (("history", "-p", "inode="), f"-p inode=: not one inode; {_INODES}\n"),
        (("history", "-p", "inode=/srv"), f"-p inode=/srv: not one inode; {_INODES}\n"),
        (("history", "-p", "inode=1 2"), f"-p inode=1 2: not one inode; {_INODES}\n"),
        (("history", "-p", "inode=99999:1 4"), f"-p inode=99999:1 4: not one inode; {_INODES}\n"),
        (("unproved", "-p", "days=abc"), "-p days=abc: not a whole number"),
        (("runs", "-p", "runs=1.5"), "-p runs=1.5: not a whole number"),
    ],
)
def test_a_value_that_cannot_be_is_no_empty_table(words, said):
    done = irmapdb("sql", *words)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"irmapdb: {said}")


def test_a_watch_without_a_path_says_why():
    assert (
        "- (handle: the kernel has no name cached for it; open-files"
        in irmapdb("lookup", "fe00000:384").out
    )


def test_an_unknown_key_is_a_finding():
    done = irmapdb("lookup", "fe00000:2e3", "/no/such\x1bpath", "254:0")
    assert done.code == 3
    assert done.out.startswith(IN_CSV)
    assert r"/no/such\x1bpath: the database does not know it" in done.err
    assert "254:0: the database does not know it (read as CRIU's hex" in done.err


@pytest.mark.parametrize(
    "key", ["passwd", "etc/passwd", "1:2:3", "fe00000:", "18446744073709551616"]
)
def test_a_text_that_is_no_key_is_refused(key):
    done = irmapdb("lookup", key)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"irmapdb: {key}: ")


def test_the_json_has_every_field():
    (found,) = json.loads(irmapdb("lookup", "254:0 742", "--json").out)
    assert found["key"] == "254:0 742"
    (inode,) = found["inodes"]
    assert (inode["dev"], inode["ino"], inode["device"]) == (254 << 20, 742, "254:0")
    (mapping,) = inode["mappings"]
    assert os.fsencode(mapping["path"]) == b"/srv/data/caf\xe9.txt"
    assert mapping["state"] == "proved"
    assert [one["run"] for one in inode["watches"]] == [2, 3, 4]
    assert [one["kind"] for one in inode["changes"]] == ["found"]


def test_the_report_has_the_rows_of_the_inode():
    with Store.open_readonly("irmap.db") as store:
        rows = list(store.all_mappings())
        changes = list(store.changes())
        runs = list(store.runs())
        for key in {row.identity.key for row in rows}:
            report = store.inode_report(key)
            assert list(report.mappings) == [row for row in rows if row.identity.key == key]
            assert list(report.changes) == [
                one for one in changes if one.change.identity.key == key
            ]
            assert [(one.run_id, one.row) for one in report.sightings] == [
                (run.id, row._replace(tried=()))
                for run in runs
                for row in store.watches(run.id)
                if row.watch.identity.key == key
            ]
        assert store.inode_report(InodeKey(1, 1)) is None
        assert store.find_by_path(b"/nowhere") == store.find_by_ino(1) == []
