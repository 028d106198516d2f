"""The hook without CRIU: its cost, its messages, and the line that switches it on."""

from __future__ import annotations

import ast
import itertools
import json
import os
import signal
import site
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from irmapdb.config import Config, HookConfig, load_config, with_environment
from irmapdb.criu import config_files, hook, hook_job, hook_script
from irmapdb.criu.config_files import Runtime
from irmapdb.errors import ConfigError
from irmapdb.image.cache import decode_cache
from irmapdb.kernel.proc import procfs
from irmapdb.kernel.proc.containers import database_name
from irmapdb.resolve import root_search
from tests.support.features import is_root, require_root
from tests.support.filesystems import tmpfs
from tests.support.hook import CHECKOUT, hook_program, log_until_stored, make_executable
from tests.support.hostile import run_forked
from tests.support.notify import IN_CREATE


@pytest.fixture
def program(tmp_path):
    return hook_program(tmp_path)


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A work dir that is also the cwd."""
    directory = tmp_path / "work"
    directory.mkdir()
    monkeypatch.chdir(directory)
    return directory


def _call(program, work, action, pid=None, **environment):
    variables = {**os.environ, "CRTOOLS_SCRIPT_ACTION": action, **environment}
    if pid is not None:
        variables["CRTOOLS_INIT_PID"] = str(pid)
    return subprocess.run(
        [program], cwd=work, env=variables, stderr=subprocess.PIPE, text=True, check=False
    )


# --- called by CRIU -------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["post-dump", "pre-restore", "network-lock", "query-ext-files"])
def test_other_actions_load_and_leave_nothing(action, work):
    code = (
        "import sys; before = set(sys.modules)\n"
        "from irmapdb.criu.hook import main\n"
        "code = main(); print(code, *sorted(set(sys.modules) - before))"
    )
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "CRTOOLS_SCRIPT_ACTION": action, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    # `time` is built in and `stat` is there since Python started.
    own = {"irmapdb", "irmapdb.criu", "irmapdb.criu.hook"}
    assert set(done.stdout.split()) <= {"0", "__future__", "time"} | own
    assert list(work.iterdir()) == []


def test_without_criu_the_hook_prints_its_use(program, work):
    environment = {name: value for name, value in os.environ.items() if "CRTOOLS" not in name}
    done = subprocess.run([program], cwd=work, env=environment, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 0
    assert b"irmapdb hook --help" in done.stderr


def test_second_call_of_one_process_does_nothing(program, watcher, tmp_path):
    watcher.add_inotify(tmp_path, IN_CREATE)
    first, second, other = (tmp_path / name for name in ("first", "second", "other"))
    for directory in (first, second, other):
        directory.mkdir()
    assert _call(program, first, "pre-dump", watcher.pid).returncode == 0
    assert _call(program, second, "pre-dump", watcher.pid).returncode == 0
    child = watcher.fork()
    assert _call(program, other, "pre-dump", child.pid).returncode == 0
    log_until_stored(first)
    assert {path.name for path in first.iterdir()} >= {"irmap-cache", "irmap.db", "irmapdb.log"}
    assert list(second.iterdir()) == []
    assert (other / "irmap-cache").exists()


def test_a_strange_environment_does_not_fail_the_hook(program, work):
    for pid in ("none", "", "-1", "0", "99999999999999999999"):
        done = _call(program, work, "pre-dump", pid)
        assert done.returncode == 0
        (line,) = done.stderr.splitlines()
        assert line.startswith("irmapdb-hook: not done: ")
        if pid in {"none", "", "-1", "0"}:
            assert line.endswith(f"CRTOOLS_INIT_PID is {pid!r}, which is no process id")
    done = _call(program, work, "pre-dump")
    assert done.returncode == 0
    assert "not done: CRTOOLS_INIT_PID is not set" in done.stderr
    assert _call(program, work, "pre-dump", IRMAPDB_HOOK_STRICT="1").returncode == 1
    assert (work / "irmapdb.log").read_text().count("not done") == 7
    assert not (work / "irmap-cache").exists()


def test_log_is_private_and_bounded(program, work, watcher):
    log = work / hook.LOG_NAME
    assert _call(program, work, "pre-dump", watcher.pid).returncode == 0
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    line, stored = log_until_stored(work)
    assert "0 watches" in line
    assert stored.endswith(f"stored in {work}/irmap.db as run 1")
    with log.open("ab") as file:
        file.truncate(3 << 20)
    child = watcher.fork()
    assert _call(program, work, "pre-dump", child.pid).returncode == 0
    assert len(log.read_bytes()) < 1000
    assert (work / "irmapdb.log.old").stat().st_size == 3 << 20


def test_a_log_that_is_not_written_is_not_pointed_at(program, work, tmp_path):
    nobody = map(str, itertools.count(4194310))  # a second call for one pid would do nothing
    (work / hook.LOG_NAME).mkdir()
    first, second = _call(program, work, "pre-dump", next(nobody)).stderr.splitlines()
    assert first == "irmapdb-hook: cannot write irmapdb.log: Is a directory"
    assert "see " not in second
    require_root()
    with tmpfs(tmp_path / "full", size_mib=1) as full:
        done = _call(program, full, "pre-dump", next(nobody))
        assert f"(see {full}/irmapdb.log)" in done.stderr
        (full / hook.LOG_NAME).unlink()
        (full / hook.LOG_NAME).touch()
        fd = os.open(full / "fill", os.O_WRONLY | os.O_CREAT)
        while os.statvfs(full).f_bavail:
            os.write(fd, bytes(4096))
        os.close(fd)
        done = _call(program, full, "pre-dump", next(nobody))
    assert f"(no room for it in {full}/irmapdb.log)" in done.stderr
    assert "see " not in done.stderr


def test_hostile_name_stays_on_its_line(program, work, watcher, tmp_path):
    name = tmp_path / "new\nline\x1b[2J"
    name.mkdir()
    watcher.add_inotify(name, IN_CREATE)
    name.rmdir()
    done = _call(program, work, "pre-dump", watcher.pid)
    assert len(done.stderr.splitlines()) == 1
    text = (work / hook.LOG_NAME).read_text()
    assert all(line.isprintable() for line in text.splitlines())
    assert "\x1b" not in text


def test_hostile_work_dir_stays_on_the_line(program, tmp_path):
    work = tmp_path / "new\nline\x1b[2J"
    work.mkdir()
    for pid in ("4194305", "none"):
        (line,) = _call(program, work, "pre-dump", pid).stderr.splitlines()
        assert line.isprintable()


def test_parent_cache_is_taken_over(program, watcher, tmp_path):
    watched = watcher.add_inotify(tmp_path, IN_CREATE)
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    child = watcher.fork()
    _call(program, first, "pre-dump", watcher.pid)
    log_until_stored(first)
    # As `criu dump --prev-images-dir` links it.
    (second / "parent").symlink_to(first)
    done = _call(program, second, "pre-dump", child.pid, CRTOOLS_IMAGE_DIR=str(second))
    assert "1 proved (1 known before)" in done.stderr
    log_until_stored(second)
    # A broken one, which CRIU would not get to see any more, does not disturb.
    (first / "irmap-cache").write_bytes(b"broken")
    for name in ("irmap-cache", "irmap.db"):
        (second / name).unlink()
    grandchild = watcher.fork()
    done = _call(program, second, "pre-dump", grandchild.pid, CRTOOLS_IMAGE_DIR=str(second))
    assert "1 proved" in done.stderr
    entries = decode_cache((second / "irmap-cache").read_bytes(), "irmap-cache")
    assert [entry.path for entry in entries] == [watched.path]


def test_where_a_program_answers_for_the_kernel(program, area, watcher, work):
    # A search asks there from a process of its own, which the hook's child is the parent of.
    mountpoint = area.fuse(area.ext4().mountpoint)
    (mountpoint / "file").write_bytes(b"content")
    watched = watcher.add_inotify(mountpoint / "file")
    with open(mountpoint / "file", "rb"):  # and so its name stays in the cache
        done = _call(program, work, "pre-dump", watcher.pid)
    # The server answered, but no option trusts it.
    log = (work / hook.LOG_NAME).read_text()
    assert "1 watch: 0 proved" in done.stderr, log
    assert f"{os.fsdecode(watched.path)} may be another file" in log
    assert decode_cache((work / "irmap-cache").read_bytes(), "irmap-cache") == ()


def test_a_signal_that_ends_the_hook_does_not_end_the_dump(program, work, watcher, tmp_path):
    # An import that writes a byte, and then waits for ever.
    (tmp_path / "sqlite3.py").write_text(
        "import os, time\nopen('begun', 'w').write(str(os.getpid()))\ntime.sleep(1000)"
    )
    environment = {
        **os.environ,
        "CRTOOLS_SCRIPT_ACTION": "pre-dump",
        "CRTOOLS_INIT_PID": str(watcher.pid),
        "PYTHONPATH": str(tmp_path),
    }
    with subprocess.Popen(
        [program], cwd=work, env=environment, stderr=subprocess.PIPE, text=True
    ) as running:
        while not ((work / "begun").exists() and (work / "begun").read_text()):
            assert running.poll() is None
            os.sched_yield()
        child = int((work / "begun").read_text())
        running.send_signal(signal.SIGTERM)
        _, said = running.communicate()
    assert running.returncode == 0
    assert "the worker was ended by a signal" in said
    assert not Path(f"/proc/{child}").exists()


def test_the_paths_that_were_proved_in_time_are_written(watcher, work, tmp_path):
    paths = [tmp_path / f"file-{number}" for number in range(60)]
    for path in paths:
        path.touch()
        watcher.add_inotify(path)
    asked = iter(range(30))
    job = hook_job.Job(
        watcher.pid,
        "",
        Config(),
        HookConfig(),
        time.monotonic(),
        abandoned=lambda: next(asked, None) is None,
    )
    done = hook_job.serve(job).done
    assert done.fresh
    (problem,) = done.problems
    assert problem.startswith("the time budget of 10.06 s was over: ")
    entries = decode_cache((work / "irmap-cache").read_bytes(), "irmap-cache")
    found = {entry.path for entry in entries}
    assert found < {os.fsencode(path) for path in paths}
    assert found
    assert all(os.lstat(entry.path).st_ino == entry.ino for entry in entries)


def test_nothing_slow_is_imported_before_the_answer(watcher, work, tmp_path):
    # In a database that knows the watch already, as CRIU's second dump finds it; and Python as the
    # script starts it, which sees no .pth file.
    watcher.add_inotify(tmp_path, IN_CREATE)
    code = (
        "import sys, time\n"
        f"sys.path += [{str(CHECKOUT)!r}, *{site.getsitepackages()!r}]\n"
        "from irmapdb.criu import hook_job\n"
        "from irmapdb.config import Config, HookConfig, load_config\n"
        "load_config()\n"
        f"job = hook_job.Job({watcher.pid}, '', Config(), HookConfig(), time.monotonic())\n"
        "served = hook_job.serve(job)\n"
        "print([served.done.summary, sorted(sys.modules)])\n"
        "print(served.keep())"
    )
    slow = {"sqlalchemy", "alembic", "typer", "click", "pydantic", "asyncio", "rich"}
    slow |= {"google.protobuf", "difflib", "shutil", "tempfile"}
    slow |= {"pathlib", "urllib", "ipaddress", "hashlib"}
    slow |= {"importlib.resources", "logging", "dataclasses", "inspect"}
    slow |= {"signal", "threading", "json", "pickle", "typing", "re", "enum"}
    # Modules that only a first search needs, and not a second one with stored rows.
    first = {"concurrent.futures"}
    first |= {"irmapdb.resolve.handle", "irmapdb.resolve.overlay"}
    first |= {"irmapdb.resolve.scan", "irmapdb.kernel.fs.walk", "irmapdb.resolve.reverse_lookup"}
    for known, unwanted in ((0, slow), (1, slow | first)):
        done = subprocess.run([sys.executable, "-ISc", code], stdout=subprocess.PIPE, check=True)
        answer, kept = done.stdout.splitlines()
        summary, modules = ast.literal_eval(answer.decode())
        assert f"1 proved ({known} known before)" in summary
        assert b"stored in" in kept
        assert unwanted.intersection(modules) == set()
        assert not [name for name in modules if name.startswith("irmapdb.commands")]


def test_no_source_of_paths_imports_a_slow_module():
    code = (
        f"import sys; sys.path[:0] = {[str(CHECKOUT), *site.getsitepackages()]!r}\n"
        "from irmapdb.criu import hook_job\n"
        "from irmapdb.kernel.child_call import call_in_child\n"
        "from irmapdb.resolve import btrfs, handle, open_files, overlay, xfs\n"
        "call_in_child(lambda: None, 60)\n"
        "print(sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-ISc", code], stdout=subprocess.PIPE, check=True)
    slow = {"typing", "re", "enum", "threading", "pickle", "hashlib", "logging"}
    assert slow.intersection(ast.literal_eval(done.stdout.decode())) == set()


@pytest.mark.parametrize(("watches", "time_s"), [(2, 1.0), (3000, 0.6)])
def test_the_proved_paths_are_written_if_a_search_hangs(
    watches, time_s, watcher, work, tmp_path, monkeypatch
):
    # The search can wait for anything: here the second proof never returns. Many paths take longer
    # to write, so that begins earlier.
    paths = [tmp_path / f"file-{number}" for number in range(watches)]
    for path in paths:
        path.touch()
    watcher.add_many(paths)
    proofs = itertools.count()
    prove, hangs = root_search.disproof_of_watch, threading.Event()

    def prove_once(*arguments):
        if next(proofs):
            hangs.set()
            threading.Event().wait()
        return prove(*arguments)

    monkeypatch.setattr(root_search, "disproof_of_watch", prove_once)
    # The time is up when the search hangs, and not sooner on a busy machine.
    clock = SimpleNamespace(monotonic=lambda: time_s * hangs.is_set(), sleep=time.sleep)
    monkeypatch.setattr(hook_job, "time", clock)

    def too_late(done):
        nice = os.getpriority(os.PRIO_PROCESS, os.getpid())
        print(json.dumps(done.fresh), nice, done.summary, flush=True)  # noqa: T201 the parent reads
        os._exit(0)  # as the hook does

    job = hook_job.Job(
        watcher.pid,
        "",
        Config(),
        HookConfig(1.0, timeout_is_set=True),
        clock.monotonic(),
        too_late=too_late,
    )
    # In a process of its own, because a blocked thread blocks to its end.
    done = run_forked(lambda: hook_job.serve(job) and 1, work)
    assert done.code == 0, done
    fresh, nice, said = done.out.split(" ", 2)
    assert fresh == "true"
    assert int(nice) == (-20 if is_root() else 0), "the thread that keeps the interpreter hurries"
    assert said.startswith(f"{watches} watches: 1 entries for CRIU; the limit of 1 s was reached")
    (entry,) = decode_cache((work / "irmap-cache").read_bytes(), "irmap-cache")
    assert Path(os.fsdecode(entry.path)) in paths


def test_the_limit_grows_with_the_watches(watcher, work, tmp_path):
    for number in range(100):
        (tmp_path / f"file-{number}").touch()
        watcher.add_inotify(tmp_path / f"file-{number}")
    told = []
    for hook_config in (HookConfig(), HookConfig(10.0, timeout_is_set=True)):
        job = hook_job.Job(
            watcher.pid, "", Config(), hook_config, time.monotonic(), tell_budget=told.append
        )
        hook_job.serve(job)
    assert told == [10.1]


# --- its settings ---------------------------------------------------------------------------------


def test_settings_from_the_file_and_the_environment(tmp_path):
    file = tmp_path / "irmapdb.toml"
    file.write_text('[hook]\ntimeout = 2.5\nstrict = true\ndb = "/var/lib/irmapdb"\n')
    hook_config = load_config(file).hook
    assert hook_config == HookConfig(2.5, timeout_is_set=True, strict=True, db=b"/var/lib/irmapdb")
    environment = {"IRMAPDB_HOOK_TIMEOUT": "7", "IRMAPDB_HOOK_STRICT": "no", "IRMAPDB_HOOK_DB": ""}
    assert with_environment(hook_config, environment) == HookConfig(
        7.0, timeout_is_set=True, strict=False, db=b"/var/lib/irmapdb"
    )


@pytest.mark.parametrize(
    "line",
    ["timeout = 0", "timeout = inf", "timeout = true", 'strict = "no"', 'db = "x"', "tmeout = 3"],
)
def test_settings_that_make_no_sense(line, tmp_path):
    file = tmp_path / "irmapdb.toml"
    file.write_text(f"[hook]\n{line}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert line.split()[0] in str(caught.value)


CONTAINER = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    "cgroup",
    [
        f"0::/system.slice/docker-{CONTAINER}.scope",
        f"0::/machine.slice/libpod-{CONTAINER}.scope/container",
        f"0::/kubepods.slice/kubepods-pod1_2.slice/crio-{CONTAINER}.scope",
        f"0::/kubepods.slice/kubepods-pod1_2.slice/cri-containerd-{CONTAINER}.scope",
        f"12:pids:/kubepods/besteffort/pod12-34/{CONTAINER}\n0::/",
        f"3:cpu,cpuacct:/docker/{CONTAINER}\n1:name=systemd:/docker/{CONTAINER}",
    ],
)
def test_database_is_named_after_the_container(cgroup, tmp_path, monkeypatch):
    monkeypatch.setattr(procfs, "ROOT", str(tmp_path))
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cgroup").write_text(cgroup + "\n")
    assert database_name(7, "/images") == f"{CONTAINER}.db"


def test_no_container_has_the_name_of_another(tmp_path, monkeypatch):
    monkeypatch.setattr(procfs, "ROOT", str(tmp_path))
    mine, theirs = "fedcba9876543210" * 4, CONTAINER
    groups = [
        f"/docker-{theirs}.scope",
        f"/docker-{mine}.scope",
        f"/docker-{mine}.scope/{theirs}",  # a container in it, or a name that it has taken
        f"/docker-{mine}.scope/{mine}/{theirs}",
        f"/docker-{mine}.scope/{mine}\r0::/docker-{mine}.scope/{theirs}",
    ]
    names = []
    for pid, group in enumerate(groups):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "cgroup").write_text(f"0::{group}\n", newline="\n")
        names.append(database_name(pid, "/images"))
    assert names[:2] == [f"{theirs}.db", f"{mine}.db"]
    assert len(set(names[:4])) == 4
    assert all(name.startswith(mine) for name in names[1:])


def test_database_of_no_container_is_named_after_the_images(tmp_path, monkeypatch):
    monkeypatch.setattr(procfs, "ROOT", str(tmp_path))
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cgroup").write_text("0::/user.slice/session-1.scope\n")
    one, two = tmp_path / "a b/../dump", tmp_path / "other" / "dump"
    names = [database_name(7, str(path)) for path in (one, two)]
    assert names[0] != names[1]
    assert all(name.startswith("dump-") and name.endswith(".db") for name in names)
    assert database_name(8, str(tmp_path / "dump")) == names[0]


# --- the command ----------------------------------------------------------------------------------


def _irmapdb(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "irmapdb", "hook", *arguments],
        cwd=CHECKOUT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_command_shows_the_line():
    done = _irmapdb("--print", "runc")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == ["in /etc/criu/runc.conf:"]
    option, _, program = done.stdout.strip().partition(" ")
    assert option == "action-script"
    assert program == f"{hook_script.SCRIPT_PATH} # for runc"


def test_command_installs_the_script(tmp_path):
    require_root()
    script, criu = tmp_path / "lib" / "irmapdb" / "irmapdb-hook", tmp_path / "criu"
    where = ("--script", str(script), "--criu-dir", str(criu))
    for runtime in ("runc", "podman", "criu"):
        done = _irmapdb("--install", runtime, *where)
        assert done.returncode == 0, done.stderr
        assert str(script) in done.stderr
    assert hook_script.is_script(script)
    assert (script.stat().st_uid, script.stat().st_mode & 0o777) == (0, 0o755)
    assert _call(script, tmp_path, "post-dump").returncode == 0
    text = script.read_bytes()
    _irmapdb("--install", "runc", *where)
    assert script.read_bytes() == text
    for runtime in ("criu", "runc", "runc"):
        _irmapdb("--uninstall", runtime, *where[2:])
        assert script.exists()
    done = _irmapdb("--uninstall", "podman", *where[2:])
    assert f"{script}: removed" in done.stderr
    assert not script.parent.exists()
    assert not criu.exists()


def test_command_replaces_the_line_of_before(tmp_path):
    # Until now the line named the program of the Python environment.
    require_root()
    script, old = tmp_path / "lib" / "irmapdb" / "irmapdb-hook", make_executable(tmp_path)
    config_files.install(Runtime.RUNC, old, tmp_path)
    where = ("--script", str(script), "--criu-dir", str(tmp_path))
    assert "another irmapdb-hook replaced" in _irmapdb("--install", "runc", *where).stdout
    assert (tmp_path / "runc.conf").read_text().split("\n")[1:] == [
        f"action-script {script} # for runc",
        "",
    ]
    assert old.exists()


def test_command_installs_a_program_of_the_user(tmp_path):
    own, criu = make_executable(tmp_path, "own"), tmp_path / "criu"
    where = ("--script", str(own), "--criu-dir", str(criu))
    before = own.read_bytes()
    assert _irmapdb("--install", "runc", *where).returncode == 0
    assert f"action-script {own} # for runc" in (criu / "runc.conf").read_text()
    assert _irmapdb("--uninstall", "runc", *where).returncode == 0
    assert own.read_bytes() == before
    assert not criu.exists()


def test_command_by_hand(watcher, work, tmp_path):
    watcher.add_inotify(tmp_path, IN_CREATE)
    done = _irmapdb("-t", str(watcher.pid), "-D", str(tmp_path), "-W", str(work))
    assert done.returncode == 0
    assert "1 proved" in done.stderr
    assert (work / "irmap-cache").exists()
    # As CRIU would call it, with the environment alone.
    assert _irmapdb(CRTOOLS_SCRIPT_ACTION="post-dump").returncode == 0
    for arguments in ((), ("-t", "1", "--install", "runc"), ("--install", "none"), ("-t", "0")):
        assert _irmapdb(*arguments).returncode == 2


def test_command_by_hand_prints_no_json(watcher, tmp_path):
    # The hook writes one line to CRIU's log.
    done = _irmapdb("-t", str(watcher.pid), "-D", str(tmp_path), "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "irmapdb pre-dump --json" in done.stderr
    assert list(tmp_path.iterdir()) == []
