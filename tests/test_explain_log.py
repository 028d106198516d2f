"""A log in any form has the same explanation: cut off, quoted, in another encoding, endless."""

from __future__ import annotations

import itertools
import json
import random
import tracemalloc
from contextlib import suppress

import pytest

from irmapdb.criu.explain.explanation import ExplainOptions, explain
from irmapdb.criu.explain.lines import CHUNK_BYTES, Lines, StepLines, _lines_with
from irmapdb.criu.explain.reader import _log_file
from irmapdb.errors import FileError, ImageError
from irmapdb.model import InodeKey
from tests.support.cli import irmapdb

_LOG = b"""\
(00.000000) CRIU run id = 7bb512fa-d049-4606-aaeb-23da636f9220
(00.000169) Version: 4.1.1 (gitid 0)
(00.000175) Running on vm Linux 6.18.44 #1 SMP x86_64
(00.010000) ========================================
(00.010001) Dumping processes (pid: 4711 comm: web)
(00.010400) Error (criu/util.c:1533): rlimit: Can't setup RLIMIT_NOFILE for self: Denied
(00.010500) irmap: Searching irmap cache in work dir
(00.010600) irmap: No irmap cache
(00.020000) Dumping task (pid: 4712 comm: worker)
(00.030000) 4712 fdinfo 5: pos:                0 flags:             4000/0
(00.030001) fsnotify: wd: wd 0x000003 s_dev 0x00002c i_ino              0xe mask 0x000020
(00.030002) fsnotify: \t[fhandle] bytes 0x000018 type 0x0000f8 __handle 0x1f:0x0e
(00.030003) Warn  (criu/fsnotify.c:281): fsnotify: \tHandle 0x2c:0xe cannot be opened
(00.030004) irmap: Resolving 2c:e path
(00.030005) Error (criu/irmap.c:220): irmap: Can't stat /no-such-path: No such file or directory
(00.030006) Error (criu/fsnotify.c:284): fsnotify: \tCan't dump that handle
(00.030007) ----------------------------------------
(00.030008) Error (criu/cr-dump.c:1698): Dump files (pid: 4712) failed with -1
(00.040000) Error (criu/cr-dump.c:2128): Dumping FAILED.
"""
_PASSED = _LOG[: _LOG.index(b"(00.030003)")] + (
    b"(00.030004) fsnotify: \t\tTrying via mntid 42 root / ns_mountpoint @. (21)\n"
    b"(00.030004) fsnotify: \tHandle 0x2c:0xe is openable\n"
    b"(00.030005) fsnotify: \tDumping /srv/a as path for handle\n"
    b"(00.040000) Dumping finished successfully\n"
    b"Displaying dump stats:\nFreezing time: 50 us\nFrozen time: 1234 us\n"
    b"IRMAP resolve time: 567 us\n"
)
_OPTIONS = ExplainOptions("dump.log", None, machine=False)


def _found(log: bytes):
    """The first finding, from pieces of odd sizes."""
    cut = random.Random(len(log))
    ends = sorted(cut.randrange(len(log) + 1) for _ in range(5))
    pieces = [log[start:end] for start, end in itertools.pairwise([0, *ends, len(log)])]
    explanation = explain(filter(None, pieces), _OPTIONS)
    return explanation, explanation.findings[0]


def _is_right(log: bytes) -> None:
    _, finding = _found(log)
    assert finding.name == "no-path"
    assert finding.watch.key == InodeKey(0x2C, 0xE)


def test_the_log_as_it_is() -> None:
    explanation, finding = _found(_LOG)
    facts = explanation.facts
    assert (facts.version, facts.action, facts.outcome) == ("4.1.1", "dump", "failed")
    assert (facts.root_pid, facts.root_comm, facts.lines) == (4711, b"web", 19)
    watch = finding.watch
    assert (watch.kind, watch.wd, watch.pid, watch.comm, watch.fd) == (
        "inotify",
        3,
        4712,
        b"worker",
        5,
    )
    assert "overlayfs" in finding.why
    assert finding.line == 16


@pytest.mark.parametrize(
    ("version", "walks"),
    [(b"4.1.1", False), (b"4.2", False), (b"4.3", True), (b"4.3.1", True), (b"4.4", True),
     (b"5.0", True), (b"unknown", False)],
)  # fmt: skip
def test_a_version_that_walks_overlays_and_those_after_it(version: bytes, *, walks: bool) -> None:
    _, finding = _found(_LOG.replace(b"4.1.1", version))
    assert ("walked the overlay" in finding.why) == walks


def _logrus(log: bytes) -> bytes:
    def line(one: bytes) -> bytes:
        said = one.decode().replace("\\", "\\\\").replace('"', '\\"').replace("\t", "\\t")
        return f'time="2026-11-29T01:02:03Z" level=warning msg="{said}"'.encode()

    return b"\n".join(map(line, log.splitlines()))


def _journal(log: bytes) -> bytes:
    return b"".join(
        b"Nov 29 01:02:03 node runc[123]: " + one for one in log.splitlines(keepends=True)
    )


def _json_lines(log: bytes) -> bytes:
    lines = log.decode().splitlines(keepends=True)
    return b"\n".join(json.dumps({"log": one, "stream": "stderr"}).encode() for one in lines)


def _one_line(log: bytes) -> bytes:
    said = json.dumps("criu failed: type NOTIFY errno 0\n" + log.decode())
    return b'E1129 kubelet.go:1] "checkpoint failed" err=%s\n' % said.encode()


def _twice_quoted(log: bytes) -> bytes:
    return json.dumps({"msg": _one_line(log).decode()}).encode()


_FORMS = {
    "no times": lambda log: b"".join(one[12:] for one in log.splitlines(keepends=True)),
    "only errors": lambda log: b"".join(
        one[12:] for one in log.splitlines(keepends=True) if b"Error" in one or b"Handle" in one
    ),
    "late times": lambda log: log.replace(b"(00.", b"(123."),
    "CRLF": lambda log: log.replace(b"\n", b"\r\n"),
    "NUL bytes": lambda log: log.replace(b"\n", b"\n\0\0\0"),
    "UTF-16": lambda log: log.decode().encode("utf-16"),
    "UTF-16-LE": lambda log: log.decode().encode("utf-16-le"),
    "UTF-16-BE": lambda log: log.decode().encode("utf-16-be"),
    "a byte order mark": lambda log: b"\xef\xbb\xbf" + log,
    "Latin-1 around": lambda log: b"\xe9\xff\n" + log + b"\xfe\n",
    "logrus": _logrus,
    "journal": _journal,
    "JSON lines": _json_lines,
    "one line": _one_line,
    "twice quoted": _twice_quoted,
    "escaped whole": lambda log: log.replace(b"\n", b"\\n"),
    "no end of line": lambda log: log.rstrip(b"\n"),
    "noise before": lambda log: b"noise\n" * 10_000 + log,
    "a long line before": lambda log: b"x" * 1_000_000 + b"\n" + log,
}


@pytest.mark.parametrize("form", list(_FORMS))
def test_the_same_in_any_form(form: str) -> None:
    _is_right(_FORMS[form](_LOG))


def test_cut_off_at_any_byte() -> None:
    stops = 0
    for end in range(len(_LOG)):
        try:
            explanation = explain([_LOG[:end]], _OPTIONS)
        except ImageError:
            assert end < 12, _LOG[:end]
            continue
        stop = explanation.findings[0]
        assert stop.name in {"no-end", "no-path", "rlimit-of-criu", "rlimit", "unknown"}
        assert not explanation.right
        stops += stop.name == "no-path"
    assert stops > 50


@pytest.mark.parametrize("start", range(0, len(_LOG), 7))
def test_the_beginning_is_missing(start: int) -> None:
    if start < _LOG.index(b"Warn "):
        _is_right(_LOG[start:])
    elif start < _LOG.rindex(b"(00"):
        assert explain([_LOG[start:]], _OPTIONS).facts.outcome == "failed"


def test_a_success() -> None:
    explanation = explain([_PASSED], _OPTIONS)
    assert explanation.right
    assert (explanation.facts.irmap_us, explanation.facts.frozen_us) == (567, 1234)
    assert explanation.without_path == 0
    done = irmapdb("explain", stdin=_PASSED)
    assert done.code == 0
    assert "the dump of process 4711 (web) passed" in done.out
    assert "1 inotify watch, 0 fanotify marks, 1 with a path" in done.out
    assert "irmap: 0.6 ms" in done.out


def test_the_last_of_several_runs_counts() -> None:
    explanation = explain([_LOG, _PASSED], _OPTIONS)
    assert (explanation.facts.runs, explanation.right) == (2, True)
    assert "2 runs" in explanation.notes[0]
    explanation = explain([_PASSED, _LOG], _OPTIONS)
    assert (explanation.facts.runs, explanation.right) == (2, False)


@pytest.mark.parametrize(
    ("said", "engine"),
    [
        ("criu failed: type NOTIFY errno 0\nlog file: {}", "runc"),
        ("CRIU checkpointing failed -52.  Please check CRIU logfile {}", "crun"),
        (
            "Error: `/usr/bin/runc checkpoint a` failed\ncriu failed: type NOTIFY\nlog file: {}",
            "runc",
        ),
        (
            (
                "Error response from daemon: Cannot checkpoint container c: runc did not end: "
                "criu failed: type NOTIFY errno 0 path= {}: unknown"
            ),
            "docker",
        ),
        ('time="1" level=error msg="criu failed: type NOTIFY errno 0\\nlog file: {}"', "runc"),
    ],
)
def test_an_engines_message_alone(said: str, engine: str) -> None:
    document = json.loads(
        irmapdb("explain", "--json", stdin=said.format("/run/a/dump.log").encode()).out
    )
    assert (document["outcome"], document["engine"]) == ("failed", engine)
    (finding,) = document["findings"]
    assert (finding["name"], finding["command"]) == ("no-reason", "irmapdb explain /run/a/dump.log")


@pytest.mark.parametrize(
    ("trace", "engine"),
    [
        (b"(00.01) cg: `- New cgroup set /machine.slice/libpod-0123456789abcdef.scope", "podman"),
        (b"(00.01) cg: Set 1 is root /kubepods/crio-0123456789abcdef.scope", "cri-o"),
        (b"(00.01) cg: Set 1 /kubepods/cri-containerd-0123456789abcdef.scope", "containerd"),
        (b"(00.01) cg: Set 1 /system.slice/docker-0123456789abcdef.scope", "docker"),
        (b"(00.01) cg: Set 1 /lxc.payload.web", "lxc"),
        (b"(00.000176) mnt: found /var/lib/docker/overlay2 and podman and crun", None),
    ],
)
def test_the_engine_is_guessed_from_its_own_traces(trace: bytes, engine: str | None) -> None:
    trace = trace.replace(b"(00.01)", b"(00.010000)")
    assert explain([trace + b"\n" + _LOG[89:]], _OPTIONS).engine == engine


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "the log is empty"),
        (b"\0" * 10_000, "the log is empty"),
        (b"hello\nworld\n", "no line of it is from CRIU"),
        (bytes(range(256)) * 100, "no line of it is from CRIU"),
        (b"\x1f\x8b\x08\0" + bytes(20), "compressed with gzip"),
        (b"\x28\xb5\x2f\xfd" + bytes(20), "compressed with zstd"),
    ],
)
def test_a_file_that_is_no_log_is_refused_in_one_line(data: bytes, said: str) -> None:
    done = irmapdb("explain", "-", stdin=data)
    assert (done.code, done.out) == (1, "")
    assert said in done.err
    assert done.err.count("\n") == 1


def test_control_characters_of_a_tenant_reach_no_terminal() -> None:
    evil = b"/srv/\x1b[2J\xe2\x80\xae\x07a"
    log = _LOG.replace(b"web", b"\x1b]0;x\x07")
    log += b"(00.05) Error (criu/fsnotify.c:1): fsnotify: Unable to open %s: No such file\n" % evil
    for options in ((), ("--json",)):
        done = irmapdb("explain", "--offline", *options, stdin=log)
        assert done.code == 3
        assert all(one == "\n" or one.isprintable() for one in done.out)


def _chunks(lines: int) -> object:
    """A log with so many watches, of about 300 bytes each, in pieces of the usual size."""
    head = _LOG[: _LOG.index(b"(00.030001)")]
    yield head
    piece = b""
    for number in range(lines):
        piece += (
            b"(00.030001) fsnotify: wd: wd 0x%06x s_dev 0x00002c i_ino 0x%x mask 0x000020\n"
            b"(00.030002) Error (criu/new.c:%d): fsnotify: Can't stat on srv/%d: No such file\n"
            % (number, number, number, number)
        )
        if len(piece) > CHUNK_BYTES:
            yield piece
            piece = b""
    yield piece + _LOG[_LOG.index(b"(00.030003)") :]


_WATCH = b"""\
fsnotify: wd: wd 0x%06x s_dev 0x00002c i_ino %#18x mask 0x000020
fsnotify: \t[fhandle] bytes 0x00000c type 0x0000f8 __handle 0x%x:0x00
Warn  (criu/fsnotify.c:281): fsnotify: \tHandle 0x2c:0x%x cannot be opened
irmap: Resolving 2c:%x path
irmap: Refresh stat for /srv/%d
irmap: Found /srv/%d in cache
fsnotify: \tDumping /srv/%d as path for handle
"""
_DROPPED = b"Warn  (criu/fsnotify.c:1): fsnotify: The %08x inotify events will be dropped\n"


def _with_times(lines: bytes) -> bytes:
    return b"".join(b"(00.%06d) " % number + one for number, one in enumerate(_split(lines)))


def _split(lines: bytes) -> list[bytes]:
    return lines.splitlines(keepends=True)


def _watches(numbers: range) -> bytes:
    return b"".join(_WATCH % (n, n, n, n, n, n, n, n) for n in numbers)


@pytest.mark.parametrize("end", ["no-path", "merged", "passed"])
def test_a_dense_log_is_read_as_one_with_other_lines_between(end: str) -> None:
    last = b"".join(_split(_watches(range(5000, 5001)))[:4])
    lines = b"Version: 4.1.1 (gitid 0)\nDumping task (pid: 7 comm: web)\n" + _watches(range(5000))
    if end == "passed":
        lines += b"Dumping finished successfully\n"
    else:
        # CRIU does not end each line of its own.
        lines += last[:-1] + (b" " if end == "merged" else b"\n")
        lines += b"Error (criu/fsnotify.c:284): fsnotify: \tCan't dump that handle\n"
    dense = explain([_with_times(lines)], _OPTIONS)
    noise = b"mnt: noise\n" * 20
    sparse = explain([_with_times(noise.join(_split(lines)))], _OPTIONS)
    assert dense.facts.counts["inode"] == 5000 + (end != "passed")
    assert dense.facts.counts["path-recorded"] == 5000
    assert dense.facts.counts == sparse.facts.counts
    assert [one.watch for one in dense.findings] == [one.watch for one in sparse.findings]
    if end == "passed":
        assert dense.right
    else:
        (finding,) = dense.findings
        assert (finding.name, finding.watch.wd, finding.watch.key.ino) == ("no-path", 5000, 5000)
        assert finding.watch.handle.type == 0xF8


def test_the_error_behind_many_lost_watches_is_explained() -> None:
    lost = b"".join(_watches(range(n, n + 1)) + _DROPPED % n for n in range(1, 201))
    end = b"Error (criu/fsnotify.c:284): fsnotify: \tCan't dump that handle\n"
    explanation = explain([_with_times(lost + end)], _OPTIONS)
    assert explanation.findings[0].name == "no-path"
    assert explanation.findings[0].watch.wd == 200
    told = [one for one in explanation.findings if one.name == "events-dropped"]
    assert [one.watch.wd for one in told] == list(range(1, 65))
    assert explanation.facts.more_seen == 200 - 64
    assert "136 more lines were not explained" in explanation.notes
    assert (
        "irmapdb looked for the paths of the first 8 inodes, and not for the other 57"
        in explanation.notes
    )
    # One watch is named once, so 200 lines about it leave none out.
    same = explain([_with_times(_watches(range(1, 2)) + _DROPPED % 1 * 200 + end)], _OPTIONS)
    assert [one.name for one in same.findings] == ["no-path", "events-dropped"]
    assert same.facts.more_seen == 0


def test_memory_does_not_grow_with_the_log() -> None:
    peaks = []
    for lines in (1_500, 6_000):
        tracemalloc.start()
        explanation = explain(_chunks(lines), _OPTIONS)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert explanation.facts.counts["inode"] == lines
        assert explanation.facts.more_seen > lines - 100
    assert peaks[1] < peaks[0] + 700_000
    assert peaks[1] < 8 << 20


def test_an_endless_line_is_bounded() -> None:
    tracemalloc.start()
    with pytest.raises(ImageError):
        explain(itertools.repeat(b"\\" * CHUNK_BYTES, 40), _OPTIONS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize(
    "line",
    [
        b"Error (criu/x.c:1): " + b": " * 8000,
        b"Error (criu/x.c:1): fsnotify: Unable to open " + b"( " * 8000,
        b"Error (criu/x.c:1): fsnotify: Unable to open " + b": a" * 5000,
        b"fsnotify: \tDumping /" + b" as path for" * 1300,
        b"(00.000001)" * 1400,
        b"Error (" * 2300,
        b"\\" * 60_000,
        b'execvp("' + b'", ...) ' * 2000,
        b"File " + b" has bad " * 1800,
        b"path=/" * 2700,
        b"(00.000001) fsnotify: \tDumping /" + b" as path for" * 1300,
        b"(00.000001) Warn  (criu/x.c:1): fsnotify: Unable to open " + b": a" * 5000,
        b"(00.000001) irmap: Found /" + b" in cach" * 2000,
        b"(00.000001) irmap: " + b"a" * 60_000,
    ],
)
def test_no_line_takes_long(line: bytes) -> None:
    # A pattern that tries all ways would not end before the test run does.
    log = (line + b"\n") * 30
    for one in Lines([log], "log"):
        assert isinstance(one, StepLines) or len(one.text) <= 1 << 14
    with suppress(ImageError):
        assert explain([log], _OPTIONS).facts.lines == 30


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (b"see the log /a/dump.log for it", b"/a/dump.log"),
        (b'path= /a/dump.log"', b"/a/dump.log"),
        (b"log file: /a.log.log.gz", b"/a.log.log"),
        (b"path=/etc see the log /b/c.log", b"/b/c.log"),
        (b"path=/path=/a.log", b"/path=/a.log"),
        (b"log file /.log", None),
        (b"log file /a", None),
    ],
)
def test_the_log_that_an_engine_names(text: bytes, path: bytes | None) -> None:
    assert _log_file(text) == path


def test_a_word_many_times_in_one_line_is_looked_for_once_in_it() -> None:
    block = b"no word\n" + b"criu" * 1000 + b"\n" + b"criu\ncriu criu\n"
    assert [*_lines_with(block, b"criu")] == [8, 4009, 4014]
    assert [*_lines_with(b"criu", b"criu")] == [0]
    assert [*_lines_with(block, b"absent")] == []


def test_a_compressed_log_names_the_program() -> None:
    with pytest.raises(FileError, match=r"zcat dump\.log \| irmapdb explain -"):
        explain([b"\x1f\x8b\x08"], _OPTIONS)


def test_a_log_that_cannot_be_read(tmp_path) -> None:
    for name in ("missing", "."):
        done = irmapdb("explain", tmp_path / name)
        assert (done.code, done.out) == (1, "")
        assert "cannot read" in done.err


def test_quiet_and_the_exit_code() -> None:
    assert irmapdb("explain", "-q", stdin=_LOG) == (3, "", "")
    assert irmapdb("explain", "-q", stdin=_PASSED) == (0, "", "")
