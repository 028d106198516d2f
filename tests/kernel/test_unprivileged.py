"""Without root: irmapdb does the possible part, and names the missing capability for the rest."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import pkgutil
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

import irmapdb as package
from irmapdb.checkpoint import steps
from irmapdb.checkpoint.steps import StepOptions
from irmapdb.config import Config
from irmapdb.errors import TaskError
from irmapdb.store import views
from tests.support.cli import irmapdb
from tests.support.watcher import Watcher

_NOBODY = 65534
_IN_MODIFY = 0x2

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def _as_nobody(action: Callable[[], object]) -> object:
    """The result (JSON) or the error (text) of `action` in a process without any rights."""
    # Perhaps only root can read the directory of Python: import now the modules of later.
    views.statements()
    for words in ("show absent", "hook --print criu --script /bin/true", "db history"):
        irmapdb(*words.split())
    for module in pkgutil.walk_packages(package.__path__, "irmapdb."):
        importlib.import_module(module.name)
    readable, writable = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.setgroups([])
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)
            answer = json.dumps(action())
        except BaseException:  # noqa: BLE001 - it is for the parent to judge
            answer = json.dumps(traceback.format_exc())
        os.write(writable, answer.encode())
        os._exit(0)
    os.close(writable)
    with os.fdopen(readable, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(answer)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory of the user nobody, reachable from /."""
    place = Path(os.path.realpath(f"/var/tmp/{tmp_path.name}-{os.getpid()}"))
    place.mkdir()
    os.chown(place, _NOBODY, _NOBODY)
    yield place
    for path in sorted(place.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    place.rmdir()


def test_own_tasks_are_resolved_by_scan(place: Path) -> None:
    work, tree, hidden = place / "work", place / "tree", place / "hidden"
    for directory in (work, tree, hidden):
        directory.mkdir()
        os.chown(directory, _NOBODY, _NOBODY)
    (tree / "seen").touch()
    (hidden / "unseen").touch()

    def watch_and_resolve() -> object:
        libc = ctypes.CDLL(None, use_errno=True)
        inotify = libc.inotify_init1(0)
        for path in (tree / "seen", hidden / "unseen"):
            assert libc.inotify_add_watch(inotify, os.fsencode(path), _IN_MODIFY) > 0
        hidden.chmod(0)
        report = steps.pre_dump(
            StepOptions(
                os.getpid(),
                images_dir=work,
                scan_paths=(os.fsencode(place),),
                config=Config(hints=(), skip_filesystems=frozenset({"ext4", "overlay", "btrfs"})),
            )
        )
        return {
            row.watch.wd: [row.path and os.fsdecode(row.path), row.why] for row in report.watches
        }

    answers = _as_nobody(watch_and_resolve)
    assert isinstance(answers, dict), answers
    assert answers["1"] == [str(tree / "seen"), None]
    assert answers["2"][0] is None
    assert "CAP_DAC_READ_SEARCH" in answers["2"][1]


def test_check_names_the_missing_capability(place: Path) -> None:
    def watch_and_check() -> object:
        libc = ctypes.CDLL(None, use_errno=True)
        inotify = libc.inotify_init1(0)
        assert libc.inotify_add_watch(inotify, os.fsencode(place), _IN_MODIFY) > 0
        pid = str(os.getpid())
        words = ("-t", pid, "-D", place, "--irmap-scan-path", place)
        return [irmapdb("pre-dump", *words), irmapdb("check", *words, "--criu-version", "4.2")]

    pre_dump, check = _as_nobody(watch_and_check)
    assert pre_dump[0] == 0, pre_dump
    assert check[0] == 3, check
    *_, counted, concluded = check[1].splitlines()
    assert counted == "1 watch: 1 cache"
    said = "the dump may fail or not be right: opening handles needs CAP_DAC_READ_SEARCH"
    assert said in concluded


def test_another_users_task_is_refused_with_advice(place: Path) -> None:
    with Watcher() as watcher:
        answer = _as_nobody(
            lambda: steps.pre_dump(StepOptions(watcher.pid, images_dir=place)).run_id
        )
    assert TaskError.__name__ in str(answer)
    assert "run as root" in str(answer)
    assert not list(place.iterdir())


@pytest.fixture
def closed(place: Path) -> Path:
    """A directory of root's with a directory and a file of mode 0, below one of the user nobody."""
    closed = place / "closed"
    (closed / "in").mkdir(parents=True)
    (place / "secret").touch(0o000)
    closed.chmod(0o000)
    return closed


_REFUSED = [
    "show PLACE/secret",
    "show PLACE/closed/in/x",
    "import PLACE/secret",
    "convert PLACE/secret -",
    "export --db PLACE/secret",
    "audit --db PLACE/secret",
    "audit --root PLACE/closed/in",
    "prune -W PLACE/closed/in",
    "lookup / -W PLACE/closed/in",
    "db current -W PLACE/closed",
    "sql -W PLACE/closed/in stale",
    "sql -f PLACE/secret",
    "pre-dump -t PID -D PLACE/closed",
    "pre-dump -t PID -D PLACE/closed/in",
    "pre-dump -t PID -D PLACE -W PLACE/closed/in",
    "pre-dump -t PID -D PLACE --db PLACE/closed/in/x.db",
    "pre-dump -t PID -D PLACE --prev-images-dir closed/in",
    "pre-dump -t PID -D PLACE --config PLACE/secret",
    "pre-dump -t PID -D PLACE -o secret",
    "check -t PID -D PLACE/closed",
    "check --images PLACE/closed/in",
    "check --images PLACE/closed/in/x.tar",
    "check --images PLACE/secret",
    "diff PLACE/closed/in/x PLACE/secret",
    "diff PLACE/secret PLACE/secret",
    "explain PLACE/closed/in/dump.log",
    "explain PLACE/secret",
    "report --db PLACE/secret -o PLACE/page.html",
    "hook --uninstall criu --criu-dir PLACE/closed",
    "hook -t PID -D PLACE/closed",
    "hook --install criu --script PLACE/secret",
]


def test_a_file_that_may_not_be_read_is_an_error_with_advice_and_no_wrong_usage(
    place: Path, closed: Path
) -> None:
    def try_all() -> object:
        answers = []
        for words in _REFUSED:
            filled = words.replace("PLACE", str(place)).replace("PID", str(os.getpid()))
            done = irmapdb(*filled.split())
            answers.append([words, done.code, done.err])
        return answers

    for words, code, said in _as_nobody(try_all):
        assert code == 1, (words, said)
        message, _, advice = said.removeprefix("irmapdb: ").partition("; ")
        assert "Permission denied" in message or "may not be" in message or "not an" in message
        assert advice, (words, said)
        assert said.count("\n") == 1


def test_a_work_dir_that_may_not_be_listed_does(place: Path) -> None:
    place.chmod(0o300)
    cache, copy = place / "irmap-cache", place / "copy.db"

    def use() -> object:
        pid = str(os.getpid())
        return [
            irmapdb(*words)
            for words in (
                ("pre-dump", "-t", pid, "-D", place, "-o", "run.log"),
                ("pre-dump", "-t", pid, "-D", place),
                ("check", "-t", pid, "-D", place),
                ("import", cache, "-W", place),
                ("export", "-W", place),
                ("show", cache, "--json"),
                ("convert", cache, place / "new.db"),
                ("db", "backup", "-W", place, copy),
                ("prune", "-W", place),
            )
        ]

    try:
        for code, _, said in _as_nobody(use):
            assert code == 0, said
    finally:
        place.chmod(0o700)


def test_check_all_says_that_it_sees_no_containers_of_others() -> None:
    code, out, err = _as_nobody(lambda: list(irmapdb("check", "--all")))
    assert (code, out) == (0, "no container runs here\n")
    assert err == "containers of other users cannot be seen: run it as root\n"
    code, out, err = _as_nobody(lambda: list(irmapdb("ps", "--container", "web")))
    assert (code, out) == (1, "")
    assert "run it as root" in err
