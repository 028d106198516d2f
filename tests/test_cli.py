"""The command line: output for people and programs, errors, exit codes."""

from __future__ import annotations

import errno
import importlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from irmapdb import commands
from irmapdb.image import cache
from irmapdb.model import CacheEntry
from irmapdb.store import revisions
from tests.support.area import MountArea
from tests.support.cli import irmapdb
from tests.support.features import require_root
from tests.support.filesystems import tmpfs
from tests.support.watcher import Watcher

_DATA = Path(__file__).parent / "data" / "images"


def _run(*arguments: str | Path, **kwargs: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "irmapdb", *map(str, arguments)],
        check=False,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        **kwargs,
    )


def _every_command() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []

    def walk(command: object, path: tuple[str, ...]) -> None:
        children = getattr(command, "commands", None)
        if children is None:
            found.append(path)
            return
        for name, child in children.items():
            walk(child, (*path, name))

    walk(get_command(commands.app), ())
    return found


@pytest.mark.parametrize("path", _every_command(), ids=" ".join)
def test_the_help_of_every_command_has_an_example(path: tuple[str, ...]) -> None:
    done = _run(*path, "--help", env={**os.environ, "COLUMNS": "100"})
    assert done.returncode == 0
    assert "Example" in done.stdout, "help shows how it is used"
    assert "<bool>" not in done.stdout, "a flag takes no value"
    before, after = re.split(r"^ Examples?: *\n", done.stdout, flags=re.MULTILINE)
    assert before.splitlines()[-1].strip() == ""
    examples = [line.strip() for line in after.partition("╭")[0].splitlines()]
    assert all(a or b for a, b in itertools.pairwise(examples)), "one blank line between two"
    assert irmapdb(*path, "-h").code == 0
    assert f"irmapdb {' '.join(path)}" in done.stdout


def test_the_flags_of_all_commands_take_no_value() -> None:
    done = irmapdb("-h")
    assert done.code == 0
    assert "--show-completion" in done.out
    assert "<bool>" not in done.out


def test_help_and_version_wait_for_no_database() -> None:
    for option in ("--help", "--version"):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "irmapdb", option],
            check=True,
            capture_output=True,
            text=True,
        )
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert "irmapdb.commands" in imported
        assert not {"sqlalchemy", "alembic"} & imported


def test_a_command_is_imported_when_it_is_asked_for_and_none_is_left_out() -> None:
    code = "import sys, irmapdb.commands; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    written: set[str] = set()
    for module in (path.stem for path in Path(commands.__file__).parent.glob("*.py")):
        found = vars(importlib.import_module(f"irmapdb.commands.{module}")).values()
        # Each command, and nothing else, has examples.
        own = [one for one in found if re.search("\n +Examples?:\n", one.__doc__ or "")]
        written |= {one.__name__.strip("_").replace("_", "-") for one in own}
        assert not own or f"irmapdb.commands.{module}" not in done.stdout.split()
    assert len(written) > 5
    assert written == {path[-1] for path in _every_command()}


def test_a_session(tmp_path: Path) -> None:
    require_root()
    watched = tmp_path / "in.csv"
    watched.touch()
    with Watcher() as watcher:
        watcher.add_inotify(watched)
        done = _run("pre-dump", "-t", str(watcher.pid), "-D", tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert str(watched) in done.stdout
        watched.rename(tmp_path / "in.csv.1")
        done = _run("dump", "-t", str(watcher.pid), "-D", tmp_path, "--json")
        document = json.loads(done.stdout)
    assert done.returncode == 0
    assert [one["path"] for one in document["watches"]] == [f"{watched}.1"]
    assert [(one["kind"], one["reason"]) for one in document["changes"]] == [("moved", "gone")]
    assert document["stats"]["frozen_time"] > 0
    shown = _run("show", tmp_path / "irmap-cache")
    assert f"{watched}.1" in shown.stdout


def test_a_mapping_that_went_stale_is_one_for_the_audit_alone(tmp_path: Path) -> None:
    require_root()
    watched = tmp_path / "in.csv"
    watched.touch()
    with Watcher() as watcher:
        watcher.add_inotify(watched)
        assert _run("pre-dump", "-t", str(watcher.pid), "-D", tmp_path).returncode == 0
        watched.rename(tmp_path / "in.csv.1")
        assert _run("audit", "-W", tmp_path).returncode == 3
        for step in ("pre-dump", "dump"):
            assert _run(step, "-t", str(watcher.pid), "-D", tmp_path).returncode == 0
    told = " ".join(_run("--help").stdout.replace("│", " ").split())
    assert "audit finds a mapping that is stale" in told
    assert "In pre-dump and dump, a file that moved and was found again does not count." in told


def test_the_output_names_tasks_that_are_left_stopped(tmp_path: Path) -> None:
    require_root()
    with Watcher() as watcher:
        words = ("-t", str(watcher.pid), "-D", tmp_path)
        document = json.loads(irmapdb("pre-dump", *words, "--json").out)
        assert (document["loaded"], document["left_stopped"]) == (0, False)
        image = cache.encode_cache([CacheEntry(1, 2, b"/a"), CacheEntry(1, 3, b"/b")])
        (tmp_path / "irmap-cache").write_bytes(image)
        document = json.loads(irmapdb("dump", *words, "--json", "--leave-stopped").out)
        assert (document["loaded"], document["left_stopped"]) == (2, True)
        os.kill(watcher.pid, signal.SIGCONT)
        assert "stopped" not in irmapdb("dump", *words).out
        said = irmapdb("dump", *words, "-s").out.splitlines()[-1]
        os.kill(watcher.pid, signal.SIGCONT)
    assert said.startswith("the tasks are left stopped; ")
    assert f"`kill -CONT {watcher.pid}`" in said


def test_a_watch_without_a_path_is_a_finding(tmp_path: Path) -> None:
    require_root()
    watched = tmp_path / "gone"
    watched.touch()
    with Watcher() as watcher:
        watcher.add_inotify(watched)
        watcher.open(watched)
        watched.unlink()
        done = _run("pre-dump", "-t", str(watcher.pid), "-D", tmp_path)
    assert done.returncode == 3
    assert "deleted" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("pre-dump", "-t", "4194304"), 1, "4194304"),
        (("pre-dump", "-t", "0"), 2, "not a process id"),
        (("pre-dump",), 2, "--tree"),
        *(
            (("dump", "-t", "1", "--timeout", seconds), 2, "not a number of seconds")
            for seconds in ("-1", "0", "nan", "inf", "1e400")
        ),
        (("show", "nowhere"), 1, "nowhere"),
        (("convert", "nowhere", "x"), 1, "nowhere"),
        (("export", "--db", "nowhere.db"), 1, "nowhere.db"),
        (("db", "current", "--db", "nowhere.db"), 1, "nowhere.db"),
        (("import", os.devnull), 1, os.devnull),
        (("check", "-t", "1", "--root", "/"), 2, "--root beside -t"),
        *(
            (("check", "--images", ".", *option), 2, f"{option[0]} beside --images")
            for option in (
                ("--force-irmap",),
                ("--irmap-scan-path", "/srv"),
                ("--criu-version", "4.2"),
                ("-D", "img"),
                ("-D", "."),
                ("-W", "work"),
                ("-o", "log"),
            )
        ),
        (("nonsense",), 2, "nonsense"),
    ],
)
def test_errors_are_one_line_that_names_the_object(
    tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    done = _run(*arguments, cwd=tmp_path)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    if code == 1:
        assert done.stderr.startswith("irmapdb: ")
        assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_help_and_docs_name_the_same_findings() -> None:
    def findings(text: str) -> list[str]:
        found = re.search(r"\b3 done, with findings: ([^.]*)\.", text)
        assert found, text
        return [one.strip() for one in found[1].replace("`", "").split(";")]

    page = Path(__file__).parent.parent / "docs" / "commands.md"
    documented = " ".join(page.read_text("utf-8").split())
    # Rich puts the help into lines, and perhaps into a frame.
    shown = " ".join(re.sub(r"[│|]", " ", irmapdb("--help").out).split())
    listed = findings(documented)
    assert len(listed) > 1
    assert findings(shown) == listed


def test_conversions_there_and_back(tmp_path: Path) -> None:
    for image in sorted(_DATA.glob("*.irmap-cache")):
        as_json, database, back = (tmp_path / f"{image.stem}{end}" for end in (".json", ".db", ""))
        for source, destination in ((image, as_json), (as_json, database), (database, back)):
            done = _run("convert", source, destination)
            assert done.returncode == 0, done.stderr
        assert back.read_bytes() == image.read_bytes()


def test_duplicates_are_kept_by_the_database(tmp_path: Path) -> None:
    # CRIU writes an entry for each watch: two watches of one file, two entries.
    entries = [CacheEntry(1, 2, b"/a"), CacheEntry(1, 3, b"/b"), CacheEntry(1, 2, b"/a")]
    image = tmp_path / "irmap-cache"
    image.write_bytes(cache.encode_cache(entries))
    for _ in range(2):  # and importing twice changes nothing
        assert _run("import", image, "--db", tmp_path / "irmap.db").returncode == 0
    assert _run("export", "-W", tmp_path, tmp_path / "out").returncode == 0
    assert (tmp_path / "out").read_bytes() == image.read_bytes()


def test_an_import_counts_the_paths_that_nothing_can_be_at(tmp_path: Path) -> None:
    paths = [b"", b"relative", b"/a\0b", b"/a/../b", b"/a/b", b"/.hidden", b"/."]
    entries = [CacheEntry(1, number, path) for number, path in enumerate(paths, 1)]
    image = tmp_path / "irmap-cache"
    image.write_bytes(cache.encode_cache(entries))
    done = _run("import", image, "-W", tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    first, second = done.stderr.splitlines()
    assert first.startswith("7 entries imported into ")
    assert second.startswith("4 paths unusable (")
    assert _run("export", "-W", tmp_path, tmp_path / "out").returncode == 0
    assert (tmp_path / "out").read_bytes() == image.read_bytes(), "none is refused or dropped"
    image.write_bytes(cache.encode_cache(entries[4:]))
    assert _run("import", image, "-W", tmp_path).stderr.count("\n") == 1


def test_a_database_is_never_overwritten_by_a_conversion(tmp_path: Path) -> None:
    image = _DATA / "swap-before.irmap-cache"
    assert _run("convert", image, tmp_path / "a.db").returncode == 0
    before = (tmp_path / "a.db").read_bytes()
    done = _run("convert", image, tmp_path / "a.db")
    assert (done.returncode, (tmp_path / "a.db").read_bytes()) == (1, before)
    assert "irmapdb import" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("export", "a.db", "--db", "a.db"), "a.db: is the file that is read; write into"),
        (("export", "link", "--db", "a.db"), "link: is the file that is read"),
        (("export", "other.db", "--db", "a.db"), "other.db: is a database, which no image"),
        (("convert", "a.db", "a.db", "--to", "pb"), "a.db: is the file that is read"),
        (("convert", "a.db", "a.db", "--to", "json"), "a.db: is the file that is read"),
        (("convert", "a.db", "other.db", "--to", "pb"), "other.db: is a database"),
        (("convert", "image", "a.db", "--to", "json"), "a.db: is a database"),
        (("convert", "image", "image", "--to", "json"), "image: is the file that is read"),
        (("convert", "image", "fifo", "--to", "json"), "fifo: it is a FIFO, not a regular file"),
        (("convert", "image", "symlink", "--to", "pb"), "symlink: it is a symbolic link"),
    ],
)
def test_no_image_replaces_another_file(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    (tmp_path / "image").write_bytes((_DATA / "swap-before.irmap-cache").read_bytes())
    for name in ("a.db", "other.db"):
        assert _run("convert", "image", name, cwd=tmp_path).returncode == 0
    os.link(tmp_path / "a.db", tmp_path / "link")
    (tmp_path / "symlink").symlink_to("a.db")
    os.mkfifo(tmp_path / "fifo")
    files = [one for one in tmp_path.iterdir() if one.is_file()]
    before = {one: one.read_bytes() for one in files}
    done = _run(*words, cwd=tmp_path, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert {one: one.read_bytes() for one in files} == before


def test_stdout_gets_the_form_that_help_promises(tmp_path: Path) -> None:
    image = _DATA / "odd-names.irmap-cache"
    raw = _raw("convert", image, "-")
    assert raw == image.read_bytes(), "pb, as for a file without a suffix"
    assert _raw("convert", image, "-", "--to", "pb") == raw
    _run("convert", image, tmp_path / "x.json")
    as_json = (tmp_path / "x.json").read_bytes()
    assert _raw("convert", image, "-", "--to", "json") == _raw("show", image, "--json") == as_json
    _run("convert", image, tmp_path / "x.db")
    assert _raw("export", "-", "--db", tmp_path / "x.db") == raw


@pytest.mark.parametrize("words", ["-", "out", "out.db", "out.json --to pb"])
def test_pretty_is_for_json_alone(tmp_path: Path, words: str) -> None:
    image = _DATA / "odd-names.irmap-cache"
    done = _run("convert", image, *words.split(), "--pretty", cwd=tmp_path)
    assert (done.returncode, done.stdout, os.listdir(tmp_path)) == (2, "", [])
    assert "--pretty, and the form to write is" in done.stderr


def _raw(*words: str | Path) -> bytes:
    command = [sys.executable, "-m", "irmapdb", *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


def test_a_database_is_not_written_to_stdout() -> None:
    done = _run("convert", _DATA / "swap-before.irmap-cache", "-", "--to", "db")
    assert (done.returncode, done.stdout) == (2, "")
    assert "a database cannot be written to stdout; name a file" in done.stderr


def test_a_backup_is_not_written_to_stdout(tmp_path: Path) -> None:
    image = _DATA / "swap-before.irmap-cache"
    assert _run("import", image, cwd=tmp_path).returncode == 0
    done = _run("db", "backup", "-", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "a database cannot be written to stdout; name a new file" in done.stderr
    assert [one.name for one in tmp_path.iterdir()] == ["irmap.db"]


@pytest.mark.parametrize("command", ["show", "convert", "import"])
def test_a_database_does_not_come_from_a_pipe_and_help_says_so(
    command: str, tmp_path: Path
) -> None:
    told = " ".join(_run(command, "--help").stdout.replace("│", " ").split())
    assert "- is stdin, and a database cannot come from stdin" in told
    assert _run("import", _DATA / "swap-before.irmap-cache", cwd=tmp_path).returncode == 0
    more = ["out"] if command == "convert" else ["--db", "x.db"] if command == "import" else []
    with (tmp_path / "irmap.db").open("rb") as database:
        done = _run(command, "-", *more, cwd=tmp_path, stdin=database)
    assert done.returncode == 1
    assert "a database cannot be read from a pipe; name the file" in done.stderr


@pytest.mark.kernel
def test_a_new_database_on_a_full_filesystem(area: MountArea) -> None:
    image = _DATA / "swap-before.irmap-cache"
    with tmpfs(area.path / "small", size_mib=1) as small:
        (small / "full").write_bytes(bytes(os.statvfs(small).f_bavail * 4096))
        done = _run("convert", image, small / "new.db")
        assert done.returncode == 1
        assert done.stderr.startswith(f"irmapdb: cannot write {small}/new.db: No space left")
        assert os.listdir(small) == ["full"]


def test_names_do_not_control_the_terminal(tmp_path: Path) -> None:
    image = tmp_path / "irmap-cache"
    image.write_bytes(cache.encode_cache([CacheEntry(1, 2, b"/a\x1b[2J\n\xe9\xe2\x80\xae")]))
    done = _run("show", image)
    assert r"/a\x1b[2J\n\xe9\u202e" in done.stdout
    assert "\x1b" not in done.stdout
    document = json.loads(_run("show", image, "--json").stdout)
    assert os.fsencode(document["entries"][0]["path"]) == b"/a\x1b[2J\n\xe9\xe2\x80\xae"


def test_a_reader_that_goes_away_is_no_traceback(tmp_path: Path) -> None:
    image = tmp_path / "irmap-cache"
    image.write_bytes(cache.encode_cache([CacheEntry(1, n, b"/x" * 50) for n in range(20000)]))
    with subprocess.Popen(
        [sys.executable, "-m", "irmapdb", "show", image],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as shown:
        assert shown.stdout is not None
        assert shown.stderr is not None
        shown.stdout.readline()
        shown.stdout.close()
        assert b"Traceback" not in shown.stderr.read()


def test_crius_spelling_of_the_log_level(tmp_path: Path) -> None:
    done = _run("pre-dump", "-t", "4194304", "-D", tmp_path, "-v4", "-o", "dump.log")
    assert done.returncode == 1
    assert (tmp_path / "dump.log").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("word", ["-v5", "-v10", "--verbosity=5", "--verbosity=x", "--verbosity="])
def test_a_wrong_log_level_is_named(tmp_path, word):
    done = irmapdb("pre-dump", "-t", str(os.getpid()), "-D", tmp_path, word)
    assert done == (2, "", f"irmapdb: {word}: no level of the log; give one of 0 to 4\n")
    assert not list(tmp_path.iterdir())


def test_a_stream_without_arrows_gets_them_escaped(tmp_path):
    image = tmp_path / "irmap-cache"
    image.write_bytes(cache.encode_cache([CacheEntry(1, 2, "/\u2192".encode())]))
    latin = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = _run("convert", image, tmp_path / "out", env=latin)
    assert (done.returncode, r"\u2192" in done.stderr) == (0, True)
    assert r"/\u2192" in _run("show", image, env=latin).stdout


@pytest.mark.parametrize(
    "words", [["-v4"], ["--verbosity=4"], ["--verbosity=0"], ["-v0"], ["-v", "-v"]]
)
def test_verbosity_is_said_as_criu_has_it(tmp_path, words):
    assert _run("pre-dump", "-t", str(os.getpid()), "-D", tmp_path, *words).returncode == 0


@pytest.mark.parametrize(
    "words", ["db history", "db history --json", "show IMAGE --json", "convert IMAGE -", "--help"]
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_target_that_cannot_be_written_is_named(tmp_path, words, unbuffered):
    image = tmp_path / "irmap-cache"
    image.write_bytes(cache.encode_cache([CacheEntry(1, n, b"/x" * 50) for n in range(1000)]))
    command = [sys.executable, "-m", "irmapdb", *words.replace("IMAGE", str(image)).split()]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, check=False
        )
    assert (done.returncode, done.stderr) == (1, "irmapdb: stdout: No space left on device\n")


def test_an_error_without_a_file_name_is_not_taken_for_one_of_stdout(monkeypatch):
    def fail(*_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(revisions, "history", fail)
    assert irmapdb("db", "history") == (1, "", "irmapdb: Too many open files\n")


@pytest.mark.parametrize("words", ["db history", "db history --json"])
def test_a_reader_that_never_reads_is_no_traceback(words):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "irmapdb", *words.split()],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_name_that_the_terminal_cannot_show_is_escaped(tmp_path):
    place = os.path.join(os.fsencode(tmp_path), b"wd\xff")
    os.mkdir(place)
    command = [sys.executable, "-m", "irmapdb", "pre-dump", "-t", str(os.getpid()), "-D", place]
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(command, capture_output=True, text=True, env=strict, check=False)
    assert done.returncode == 0, done.stderr
    assert r"wd\xff/irmap-cache" in done.stdout
    image = os.path.join(place, b"irmap-cache")
    other = tmp_path / "other.db"
    command = [sys.executable, "-m", "irmapdb", "import", image, "--db", other]
    done = subprocess.run(command, capture_output=True, text=True, env=strict, check=False)
    assert done.returncode == 0, done.stderr


_EVIL = os.fsdecode(b"\xff\n\x1b[31mRED")


@pytest.mark.parametrize(
    "words",
    [
        "show EVIL",
        "show EVIL/broken.json",
        "convert image EVIL/absent/out",
        "convert image EVIL/kept.db",
        "convert image EVIL/new --to pb",
        "import image --db EVIL/more.db",
        "export --db EVIL/kept.db EVIL/out",
        "db upgrade --db EVIL/kept.db",
        "db backup --db EVIL/kept.db EVIL/copy.db",
        "sql -f EVIL",
        "sql -p EVIL SELECT",
        "pre-dump -t PID -D EVIL/absent",
        "pre-dump -t PID -D EVIL",
        "pre-dump -t PID -D EVIL -o absent/log",
        "pre-dump -t PID --config EVIL/bad.toml",
        "pre-dump -t PID --config EVIL/entry.toml",
        "dump -t PID -D EVIL --freeze-cgroup EVIL",
        "check -t PID -D EVIL",
        "check --images EVIL",
        "hook --print criu --script EVIL",
        "hook --uninstall criu --criu-dir EVIL",
        "hook -t PID -D EVIL/absent/img",
    ],
)
def test_a_path_that_was_named_stays_on_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    require_root()
    monkeypatch.chdir(tmp_path)
    evil = tmp_path / _EVIL
    evil.mkdir()
    (evil / "broken.json").write_text('{"entries": [\n')
    (evil / "bad.toml").write_text("[scan\n")
    (evil / "entry.toml").write_text('[scan]\n"a\\nb" = 1\n')
    for image in (tmp_path / "image", evil / "irmap-cache"):
        image.write_bytes(cache.encode_cache([CacheEntry(1, 2, b"/a")]))
    irmapdb("convert", "image", evil / "kept.db")
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as task:
        task_words = words.replace("PID", str(task.pid)).split()
        done = irmapdb(*(word.replace("EVIL", _EVIL) for word in task_words))
    assert "RED" in done.said
    assert all(line.isprintable() for line in done.said.splitlines())
    assert done.err.count("\n") <= 1


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_are_empty(closed):
    command = f"exec {sys.executable} -m irmapdb show - --json {closed}"
    done = subprocess.run(
        ["sh", "-c", command], input="", stderr=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith(
        "irmapdb: /dev/stdin is an empty file" if "2>" not in closed else ""
    )
    assert "Traceback" not in done.stderr


def test_a_closed_stdout_is_no_traceback():
    command = f"exec {sys.executable} -m irmapdb db history --json >&-"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
