"""The other data of a push: names and verdicts of the containers that run."""

from __future__ import annotations

from decimal import Decimal

import pytest

from irmapdb.config import Config
from irmapdb.errors import TaskError
from irmapdb.fleet import facts
from irmapdb.fleet.ask import _value
from irmapdb.fleet.sources import ContainerFacts, sources
from irmapdb.kernel.proc.containers import Container, ContainerName
from irmapdb.node.check_all import ContainerCheck, NodeCheck, Reason
from irmapdb.node.container_info import ContainerInfo
from tests.support.cli import irmapdb

_HEX = "0123456789abcdef" * 4
_CONTAINERS = (
    Container(ContainerName("default/web", "web.0123456789abcdef"), 4711, 1, 2, ("/a",), (4711,)),
    Container(ContainerName(_HEX, _HEX), 4712, 1, 3, ("/b",), (4712,)),
)
_INFOS = (
    ContainerInfo("default/web", "web\0\udcff", "nginx:1", "team-a/web-0", "containerd", "/a"),
    ContainerInfo(_HEX, None, None, None, None, "/b"),
)


def _install(monkeypatch, checks=()):
    monkeypatch.setattr(facts, "find_containers", lambda: _CONTAINERS)
    monkeypatch.setattr(facts, "describe_all", lambda _: _INFOS)
    answer = NodeCheck(None, tuple(checks), (), 0)
    monkeypatch.setattr(facts, "check_all", lambda _: answer)


def test_a_database_gets_the_names_of_its_container(monkeypatch):
    _install(monkeypatch)
    known = facts.containers()
    paths = (f"/d/web.{'0123456789abcdef'}.db", f"/d/{_HEX}.db", f"/d/{'f' * 64}.db", "/w/irmap.db")
    named, plain, ended, other = sources(paths, known)
    assert named.container == ContainerFacts(
        "default/web", "web\\x00\\udcff", "nginx:1", "web-0", "team-a"
    )
    assert plain.container == ContainerFacts(_HEX, None, None, None, None)
    assert (ended.stem, ended.container) == ("f" * 64, ContainerFacts())
    assert (other.stem, other.container) == (None, ContainerFacts())


def test_a_database_gets_the_verdicts_of_its_container(monkeypatch):
    worst = Reason("no-path", "no path is known", "run pre-dump")
    counted = {"no-path": 2, "valid": 5}
    checks = [
        ContainerCheck(
            *(_INFOS[0], 4711),
            hook=False,
            watches=7,
            verdicts=counted,
            worst=worst,
            fails=True,
            right=False,
        ),
        ContainerCheck(
            *(_INFOS[1], 4712),
            hook=False,
            watches=0,
            verdicts={},
            worst=None,
            fails=False,
            right=True,
        ),
    ]
    _install(monkeypatch, checks)
    found = facts.verdicts(Config())
    assert found[_HEX] == ()
    rows = [row[1:] for row in found["web.0123456789abcdef"]]
    assert rows == [
        ("no-path", 2, "no path is known", "run pre-dump", True),
        ("valid", 5, None, None, True),
    ]


def test_facts_that_cannot_be_read_are_left_out(monkeypatch):
    def fail(*_):
        message = "no"
        raise TaskError(message)

    for name in ("find_containers", "check_all"):
        monkeypatch.setattr(facts, name, fail)
    monkeypatch.setattr(facts.ps, "take", fail)
    assert (facts.containers(), facts.verdicts(Config()), facts.limits()) == ({}, {}, [])


def test_help_has_an_example_of_each_command():
    for name in ("init", "upgrade", "current", "push", "check", "prune", "grant"):
        assert f"irmapdb fleet {name} " in irmapdb("fleet", name, "--help").out


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        ("12", 12),
        ("-3.0", -3),
        ("1.5", 1.5),
        ("1E+30", 10**30),
        ("Infinity", "Infinity"),
        ("NaN", "NaN"),
        ("1E+5000", "1E+5000"),
    ],
)
def test_a_number_of_postgresql_can_be_printed(number, shown):
    value = _value(Decimal(number))
    assert (type(value), value) == (type(shown), shown)
