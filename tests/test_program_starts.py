"""The marker `slow`: a test that starts a program gets it, also if a helper starts the program."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import programs
from tests.support.cli import irmapdb
from tests.support.program_starts import starts_program
from tests.support.watcher import Watcher


def _direct() -> None:
    subprocess.run([sys.executable, "-c", ""], check=True)


@contextmanager
def _around() -> Iterator[None]:
    _direct()
    yield


def _in_a_function_inside() -> None:
    def inside() -> None:
        with _around():
            pass

    inside()


def _in_a_module_of_helpers() -> None:
    programs.run("true")


def _in_a_method() -> None:
    with Watcher():
        pass


@given(st.none())
def _in_a_property(value: None) -> None:
    _direct()


def _again(depth: int) -> None:
    if depth:
        _again(depth - 1)


def _in_this_process() -> None:
    irmapdb("--version")


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(_direct, id="direct"),
        pytest.param(_around, id="context manager"),
        pytest.param(_in_a_function_inside, id="function inside"),
        pytest.param(_in_a_module_of_helpers, id="module of helpers"),
        pytest.param(_in_a_method, id="method"),
        pytest.param(_in_a_property, id="property"),
    ],
)
def test_a_program_is_found(function):
    assert starts_program(function)


@pytest.mark.parametrize("function", [_again, _in_this_process], ids=["recursion", "in process"])
def test_no_program_is_found(function):
    assert not starts_program(function)


@pytest.fixture
def child():
    _direct()


def test_a_fixture_that_starts_a_program_makes_its_test_slow(child, request):
    assert request.node.get_closest_marker("slow")


def test_this_one_is_not_slow(request):
    assert not request.node.get_closest_marker("slow")
