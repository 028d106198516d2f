"""The benchmark runs, whole, on a tree that takes no time; its figures are not looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

_RUN = Path(__file__).parent.parent / "bench" / "run.py"
_SMALL = (
    *("--directories", "3", "--files", "60", "--watches", "7,60", "--entries", "50"),
    *("--repeats", "1", "--start-repeats", "1"),
)
_KINDS = ("from nothing, names known", "again, every path stored", "from nothing, one scan")


@pytest.fixture
def bench(tmp_path):
    """Run the benchmark with these words in a place of its own."""

    def run(*words):
        return subprocess.run(
            [sys.executable, _RUN, "--dir", tmp_path / "bench", *words],
            env={**os.environ, "PYTHONPATH": str(_RUN.parent.parent)},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return run


@pytest.mark.slow
def test_every_section_measures_and_leaves_nothing_but_the_tree(bench, tmp_path):
    done = bench(*_SMALL, "--json", tmp_path / "figures.json")
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "figures.json").read_text())
    rows = {(row["section"], row["what"], row["size"]): row for row in document["rows"]}
    skipped = {(one["section"], one["what"]) for one in document["skipped"]}
    for size in (7, 60):
        for kind in _KINDS:
            assert ("pre-dump", kind, size) in rows or ("pre-dump", kind) in skipped
        for what in ("bare read of fdinfo", "frozen_time", "the whole command"):
            assert rows["dump", what, size]["min"] > 0
    for what in ("import (image → database)", "export (database → image)"):
        assert rows["forms", what, 50]["peak_bytes"] > 1e6
    # The goals are for the large tree, so this small one is not compared with them.
    any_size = {"start", "hook", "freeze", "containerd", "warm"}
    assert {goal["section"] for goal in document["goals"]} <= any_size
    assert {goal["unit"] for goal in document["goals"]} == {"times"}
    assert document["machine"]["filesystem"] != "unknown"
    for row in document["rows"]:
        assert row["what"] in done.stdout
    assert os.listdir(tmp_path / "bench") == ["3x60"]
    assert sum(len(files) for _, _, files in os.walk(tmp_path / "bench")) == 60


def test_wrong_answers_are_not_measured(bench, tmp_path):
    # An irmapdb that answers nothing: pre-dump "works", and leaves no database.
    done = bench(*_SMALL, "--only", "pre-dump", "--irmapdb", "true")
    assert done.returncode == 1
    assert "irmap.db" in done.stderr
    assert "MEDIAN" not in done.stdout


def test_more_watches_than_a_user_may_have(bench):
    done = bench("--directories", "1", "--files", "9000000000", "--watches", "9000000000")
    assert done.returncode == 1
    assert "bench: fs.inotify.max_user_watches is " in done.stderr
    assert "sysctl fs.inotify.max_user_watches=9000008192" in done.stderr
