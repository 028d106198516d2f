"""The keys of `--container`: an id, its beginning, a name or a pod."""

from __future__ import annotations

import pytest

from irmapdb.errors import TaskError
from irmapdb.node.container_info import ContainerInfo, find_named
from tests.support.engine_host import HEX, OTHER


def _info(id_: str, name: str | None = None, pod: str | None = None) -> ContainerInfo:
    return ContainerInfo(id_, name, None, pod, None, f"/{id_}")


NODE = (
    _info(HEX, "web"),
    _info(OTHER, "db"),
    _info("0123" + "f" * 60, "0124"),
    _info("a" * 64, "app", "shop/web-1"),
    _info("b" * 64, "POD", "shop/web-1"),
    _info("c" * 64, "app", "shop/web-2"),
    _info("d" * 64, "log", "shop/web-2"),
    _info("default/c1"),
    _info("other/c1"),
    _info("e" * 64, HEX),
    _info("9" * 64, "aaaa"),
)


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        (HEX, 0),  # and not the container that has it for a name
        (HEX[:5], 0),
        (OTHER[:12], 1),
        ("web", 0),
        ("0124", 2),
        ("shop/web-1", 3),
        ("web-1", 3),
        ("shop/web-1/app", 3),
        ("web-1/app", 3),
        ("shop/web-1/POD", 4),
        ("bbbb", 4),
        ("web-2/log", 6),
        ("default/c1", 7),
        ("default/", 7),
    ],
)
def test_an_id_its_beginning_or_a_name_is_enough(wanted: str, index: int) -> None:
    assert find_named(wanted, NODE) == index


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("app", "2 containers are called app: aaaa"),
        ("web-2", "2 containers are called web-2"),
        ("c1", "2 containers are called c1: default/c1, other/c1; give more of the id"),
        ("0123", "2 containers are called 0123"),
        ("aaaa", "2 containers are called aaaa"),  # the name of one, the beginning of the other
        ("012", "no container is called 012"),  # too short for an id
        ("wbe", "no container is called wbe; did you mean web?"),
        ("nothing-like-it", "`irmapdb check --all` lists the containers"),
        ("", "no container is called"),
        ("\x1b[31m", r"no container is called \x1b[31m"),
    ],
)
def test_a_key_of_no_or_several_containers_is_refused(wanted: str, said: str) -> None:
    with pytest.raises(TaskError) as raised:
        find_named(wanted, NODE)
    assert said in str(raised.value)


def test_without_containers_the_advice_is_another() -> None:
    with pytest.raises(TaskError, match="no container runs here"):
        find_named("web", [])
