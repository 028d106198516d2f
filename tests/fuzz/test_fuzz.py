"""Each target for a moment, the kept inputs again, and that a fault would be seen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from irmapdb.errors import IrmapError, SqlError
from tests.fuzz import corpus, scratch
from tests.fuzz.campaign import engine, fuzz
from tests.fuzz.registry import BY_NAME
from tests.fuzz.target import Check, check_text

_CHECKOUT = Path(__file__).parent.parent.parent
# "broken" is a target with a fault that only its third byte shows; it is in no registry.
_BROKEN = """
import sys
from tests.fuzz import registry, target, worker

def run(data):
    if data[:3] == b"abc":
        raise ValueError("the planted fault")

registry.BY_NAME["broken"] = target.Target("broken", run, lambda: [b"a"], (b"bc",))
worker.main()
"""


@pytest.mark.parametrize("name", BY_NAME)
def test_seeds_and_kept_inputs(name):
    target = BY_NAME[name]
    inputs = [*target.seeds(), *corpus.load(name)]
    assert len(inputs) >= 2
    for data in [b"", *inputs]:
        target.run(data)


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_NAME)
def test_short_run(name, tmp_path):
    runs = BY_NAME[name].short_runs
    found = fuzz(name, tmp_path, runs=runs, seed=1)
    assert found.ok, found.log[-4000:]
    assert found.runs >= runs
    if engine() == "atheris":
        # Without instrumentation there is no count of reached code.
        assert found.features > 50


def test_nothing_is_left_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch, "_SHARED_MEMORY", tmp_path)
    assert fuzz("config", tmp_path / "run", runs=10, seed=1).ok
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    # libFuzzer ends the worker at once, so its directory is inside of the removed one.
    monkeypatch.setenv(scratch.PARENT, str(tmp_path))
    assert scratch.scratch().parent == tmp_path


@pytest.mark.slow
def test_other_engine(tmp_path):
    found = fuzz("cache", tmp_path, runs=300, seed=1, by="hypothesis")
    assert found.ok, found.log[-4000:]
    assert found.runs >= 300


@pytest.mark.parametrize("by", sorted({engine(), "hypothesis"}))
def test_fault_is_found_and_its_input_kept(by, tmp_path):
    command = [sys.executable, "-c", _BROKEN, by, "broken", tmp_path, "20000", "0", "1"]
    done = subprocess.run(
        command, cwd=_CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    assert done.returncode != 0
    assert b"the planted fault" in done.stdout
    (crash,) = (tmp_path / "crashes" / "broken").iterdir()
    assert crash.read_bytes().startswith(b"abc")


def test_kept_inputs_come_back(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "_DIRECTORY", tmp_path)
    inputs = [bytes(range(256)), b"", b"SELECT 1\n"]
    assert corpus.add("cache", [*inputs, b""]) == 3
    assert corpus.add("cache", inputs) == 0
    assert corpus.load("cache") == inputs


@pytest.mark.parametrize("text", ["\x1b[2J", "a\tb", "\x95", "\u202e", "\udc95", "\u2028", "\r"])
def test_no_error_carries_a_control_character(text):
    for error in (
        IrmapError(f"{text}: not there", advice=f"remove {text}"),
        SqlError(f"near {text!s}", advice=text),
    ):
        check_text(str(error))
        str(error).encode()
        assert error.args[0] == error.message
        assert f"{ord(text[0]):x}" in str(error) or text == "a\tb"


def test_backslash_of_a_quoted_name_stays():
    assert str(IrmapError("/a\\x1bb: caf\xe9")) == "/a\\x1bb: caf\xe9"


def test_check_text_sees_escapes():
    with pytest.raises(Check):
        check_text("\x1b[2J")
