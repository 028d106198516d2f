"""The shell script that CRIU executes, under each shell that may be /bin/sh, without a service."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.features import require, require_root
from tests.support.shell_hook import FAILURES, LINE, SHELLS, Hook

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PIDS_CGROUPS = (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup"))


@pytest.fixture(params=SHELLS)
def hook(request: pytest.FixtureRequest, tmp_path: Path) -> Hook:
    return Hook(tmp_path, request.param)


def test_other_actions_start_nothing(hook: Hook) -> None:
    hook.write_program("exit 99")
    for action in ("post-dump", "network-lock", "pre-restore", "irmapdb-check", ""):
        done = hook(action)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert hook.starts() == 0
    assert not hook.run_dir.exists()


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("name", ["a b", "it's", "$HOME", "new\nline", "*", "caf\udce9", '"', "\\"])
def test_odd_program_paths(shell: str, name: str, tmp_path: Path) -> None:
    hook = Hook(tmp_path, shell, name)
    hook.write_program("echo said >&2; exit 0")
    done = hook()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "said\n")
    assert hook.starts() == 1


def test_the_program_gets_the_call(hook: Hook) -> None:
    hook.write_program('echo "$CRTOOLS_INIT_PID $CRTOOLS_IMAGE_DIR $PWD $(readlink /proc/$$/fd/0)"')
    done = hook(pid=4711, CRTOOLS_IMAGE_DIR="/proc/1/fd/5")
    assert done.stderr == f"4711 /proc/1/fd/5 {hook.work} /dev/null\n"


def test_the_second_call_of_one_criu_does_nothing(hook: Hook) -> None:
    hook.write_program()
    assert [hook().returncode for _ in range(3)] == [0, 0, 0]
    assert hook.starts() == 1
    hook(pid=1)  # another tree
    assert hook.starts() == 2
    for mark in hook.run_dir.glob("hook-*"):
        uptime_s = float(Path("/proc/uptime").read_text().split()[0])
        mark.write_text(f"{int(uptime_s) - 11}\n")
    hook()
    assert hook.starts() == 3


@pytest.mark.parametrize("failure", FAILURES)
def test_no_damage_of_irmapdb_fails_the_dump(hook: Hook, failure: str) -> None:
    hook.write_program()
    FAILURES[failure](hook.program)
    done = hook()
    assert done.returncode == 0
    assert done.stderr.startswith(LINE)
    assert len(done.stderr.splitlines()) == 1
    hook.forget()
    assert hook(IRMAPDB_HOOK_STRICT="True").returncode == 1
    hook.config.write_text("[hook]\nstrict = true\n")
    hook.forget()
    assert hook().returncode == 1
    hook.forget()
    assert hook(IRMAPDB_HOOK_STRICT="0").returncode == 0


@pytest.mark.parametrize(
    ("text", "strict"),
    [
        ("[hook]\nstrict = true", True),
        ("[scan]\npaths = []\n\n[ hook ] # ours\n\tstrict=true # yes", True),
        ("hook.strict = true\n", True),
        ("[hook]\nstrict = false\n", False),
        ("[hook]\n# strict = true\n", False),
        ("[other]\nstrict = true\n", False),
        ("strict = true\n[hook]\n", False),
        ("", False),
        ("\0\xff[hook", False),
    ],
)
def test_strict_of_the_configuration(hook: Hook, text: str, strict: bool) -> None:  # noqa: FBT001
    hook.config.write_text(text)
    assert hook().returncode == int(strict)


def test_only_the_hook_itself_fails_the_dump(hook: Hook) -> None:
    for code, expected in ((99, 1), (0, 0), (1, 0), (2, 0), (98, 0), (127, 0)):
        hook.write_program(f"exit {code}")
        assert hook().returncode == expected, code
        hook.forget()


@contextlib.contextmanager
def process_limit(most: int) -> Iterator[Callable[[], object]]:
    """A cgroup with that limit; the function moves the calling process into it."""
    top = next((one for one in PIDS_CGROUPS if (one / "cgroup.procs").exists()), None)
    require(top, "a cgroup with pids.max")
    path = top / f"irmapdb-hook-{os.getpid()}"
    path.mkdir()
    try:
        (path / "pids.max").write_text(f"{most}\n")
        yield lambda: (path / "cgroup.procs").write_text("0\n")
    finally:
        end_s = time.monotonic() + 60
        while (path / "cgroup.procs").read_text():  # a sleep of the script
            assert time.monotonic() < end_s
            time.sleep(0.05)
        path.rmdir()


@pytest.mark.parametrize(
    ("shell", "strict"), [("dash", 0), ("dash", 1), ("busybox", 0), ("bash", 0)]
)
def test_a_shell_that_cannot_fork_fails_no_dump(shell: str, strict: int, tmp_path: Path) -> None:
    require_root()
    hook = Hook(tmp_path, shell)
    hook.write_program()
    with process_limit(1) as enter:
        done = hook(before=enter, IRMAPDB_HOOK_STRICT=str(strict))
    assert (done.returncode, hook.starts()) == (strict, 0)
    assert done.stderr.splitlines()[-1].startswith(LINE)


TRIVIAL = "{ read -r uptime </proc/uptime; } 2>/dev/null; exit 0"


def test_a_shell_without_descriptors_fails_no_dump(hook: Hook) -> None:
    hook.write_program()
    trivial = hook.script.with_name("trivial")
    trivial.write_text(f"{hook.script.read_text().splitlines()[0]}\n{TRIVIAL}\n")
    trivial.chmod(0o755)
    codes = []
    for most in range(3, 20):

        def limit(most: int = most) -> None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

        # With fewer, this shell cannot execute a script of one line.
        if subprocess.run([trivial], preexec_fn=limit, check=False).returncode == 0:
            codes.append(hook(before=limit).returncode)
            hook.forget()
    assert codes
    assert set(codes) == {0}


def test_without_irmapdb_old_files_of_scripts_do_not_pile_up(hook: Hook) -> None:
    hook.run_dir.mkdir(mode=0o700)
    old, new = ("hook-1-2-3", "reply-1-2"), ("hook-4-5-6", "reply-4-5")
    others = ("hook.log.old", "image-1-2", "warm.pid")
    for name in (*old, *new, *others):
        (hook.run_dir / name).touch()
        if name not in new:
            os.utime(hook.run_dir / name, (0, 0))
    assert hook().stderr.startswith(LINE)
    (mark,) = {path.name for path in hook.run_dir.iterdir()} - {*new, *others, "hook.log"}
    assert mark.startswith(f"hook-{os.getpid()}-")


def test_options_that_bash_takes_from_the_environment(hook: Hook) -> None:
    for body in ("exit 0", "exit 1"):
        hook.write_program(body)
        assert hook(SHELLOPTS="errexit:nounset").returncode == 0
        hook.forget()
    assert hook.starts() == 2


def test_no_call_of_criu(hook: Hook) -> None:
    hook.write_program('echo "init: $CRTOOLS_INIT_PID"')
    for pid in ("", "none", "-1", "../../etc/passwd"):
        assert hook(pid=pid).stderr == f"init: {pid}\n"
    assert hook.starts() == 4
    assert not list(hook.run_dir.parent.rglob("passwd"))
