"""The rows of the commands: --all-rows lists every watch, and no other option does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.watcher import Watcher

_MANY = 60


def _lines(place: Path, *words: str) -> list[str]:
    command = [sys.executable, "-m", "irmapdb", *words]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode in {0, 3}, done.stderr
    return done.stdout.splitlines()


def _rows(lines: list[str], place: Path) -> int:
    return sum(bool(re.search(rf"{re.escape(str(place))}/\d+$", line)) for line in lines)


@pytest.mark.parametrize("command", ["pre-dump", "dump", "check"])
def test_the_log_level_lists_no_more_rows(command: str, watcher: Watcher, tmp_path: Path) -> None:
    for number in range(_MANY):
        path = tmp_path / f"{number}"
        path.mkdir()
        watcher.add_inotify(path)
    words = command, "-t", str(watcher.pid)
    if command == "check":
        words += "--criu-version", "4.2"
    for level in ("-v", "-v4"):
        listed = _lines(tmp_path, *words, level)
        assert _rows(listed, tmp_path) == 0
        assert any("--all-rows lists all" in line for line in listed)
    listed = _lines(tmp_path, *words, "--all-rows")
    assert _rows(listed, tmp_path) == _MANY
    assert not any("--all-rows" in line for line in listed)
