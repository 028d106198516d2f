"""If a sandbox refuses a system call, irmapdb works without it, or one line names it."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from irmapdb.image.cache import decode_cache
from tests.support.hook import hook_program
from tests.support.sandbox import NUMBERS
from tests.support.stepping import new_work_dir

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.area import MountArea
    from tests.support.watcher import Watcher

# Nothing can be proved, or no task be frozen, without these.
NEEDED = {
    ("openat2", "EPERM"): {"pre-dump", "dump"},
    ("openat2", "ENOSYS"): {"pre-dump", "dump"},
    ("statx", "EPERM"): {"pre-dump", "dump"},
    ("statx", "ENOSYS"): {"pre-dump", "dump"},
    ("name_to_handle_at", "EPERM"): {"pre-dump", "dump"},
    ("ptrace", "EPERM"): {"dump"},
    ("ptrace", "ENOSYS"): {"dump"},
}


CELLS = [(call, code, "dump") for call in sorted(NUMBERS) for code in ("EPERM", "ENOSYS")]
CELLS += [(*cell, "pre-dump") for cell in NEEDED]  # dump does all that pre-dump does


@pytest.mark.parametrize(("call", "code", "step"), CELLS)
def test_a_call_that_is_refused(
    area: MountArea, watcher: Watcher, tmp_path: Path, call: str, code: str, step: str
) -> None:
    if len(NUMBERS) < len(NEEDED):
        pytest.skip(f"no table of system calls for {os.uname().machine}")
    file = area.ext4().mountpoint / "file"
    file.touch()
    watcher.add_inotify(file)
    for _ in range(2):
        watcher.inotify()  # equal descriptors, to be compared
    work = new_work_dir(tmp_path)
    sandbox = [sys.executable, "-m", "tests.support.sandbox", f"{call}={code}", "--"]
    command = [sys.executable, "-m", "irmapdb", step, "-t", str(watcher.pid), "-D", str(work)]
    done = subprocess.run(
        [*sandbox, *command],
        capture_output=True,
        check=False,
        text=True,
        timeout=100,
    )
    if step in NEEDED.get((call, code), ()):
        assert done.returncode == 1
        assert done.stderr.startswith("irmapdb: ")
        assert done.stderr.count("\n") == 1
        assert call in done.stderr
        assert "seccomp" in done.stderr
    else:
        assert (done.returncode, done.stderr) == (0, "")
        with closing(sqlite3.connect(work / "irmap.db")) as database:
            paths = database.execute("SELECT path FROM watch").fetchall()
        assert paths == [(os.fspath(file),)]
    assert watcher.state() in "SR"


@pytest.mark.parametrize("call", ["pidfd_open", "kcmp", "fanotify_init"])
def test_the_hook_does_without(watcher: Watcher, tmp_path: Path, call: str) -> None:
    if call not in NUMBERS:
        pytest.skip(f"no table of system calls for {os.uname().machine}")
    file = tmp_path / "file"
    file.touch()
    watcher.add_inotify(file)
    work = new_work_dir(tmp_path)
    sandbox = [sys.executable, "-m", "tests.support.sandbox", f"{call}=EPERM", "--"]
    done = subprocess.run(
        [*sandbox, "env", "-C", work, hook_program(tmp_path)],
        env={
            **os.environ,
            "CRTOOLS_SCRIPT_ACTION": "pre-dump",
            "CRTOOLS_INIT_PID": str(watcher.pid),
            "CRTOOLS_IMAGE_DIR": str(work),
            "IRMAPDB_HOOK_TIMEOUT": "60",
        },
        capture_output=True,
        check=False,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0
    assert "1 watch: 1 proved" in done.stderr, done.stderr
    (entry,) = decode_cache((work / "irmap-cache").read_bytes(), "irmap-cache")
    assert entry.path == os.fsencode(file)
