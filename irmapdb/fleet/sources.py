"""Finds the databases of this node, and the facts about node and containers that go along."""

from __future__ import annotations

import os
import stat
from hashlib import blake2b

from irmapdb import files
from irmapdb.errors import FileError
from irmapdb.kernel.proc.containers import is_container_database
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from irmapdb.config import Config
    from irmapdb.model import AnyPath

__all__ = [
    "CheckVerdict",
    "ContainerFacts",
    "LimitUse",
    "NodeFacts",
    "PushSource",
    "find_databases",
    "node_facts",
    "sources",
]

_MACHINE_ID = b"/etc/machine-id"
_MACHINE_ID_BYTES = 64
_SUFFIX = b".db"


class ContainerFacts(Record):
    """The names of the container that a database belongs to; None if they are not known."""

    container: str | None = None
    """The engine's id, or the last part of the cgroup with a digest."""
    container_name: str | None = None
    image: str | None = None
    pod: str | None = None
    namespace: str | None = None
    """Of Kubernetes. Row-level security goes by it."""


class CheckVerdict(Record):
    """The prediction for some watches of a container: a row of `irmapdb check --all`."""

    at: datetime
    verdict: str
    watches: int
    why: str | None
    """Only for the worst one."""
    advice: str | None
    fails: bool
    """Whether the dump would fail."""


class LimitUse(Record):
    """A limit of the kernel for one user, and its use."""

    name: str
    uid: int
    used: int
    limit: int


class PushSource(Record):
    """One database of this node."""

    file: bytes
    """Absolute."""
    stem: str | None = None
    """The name of the file if it is that of a container's database, without `.db`."""
    container: ContainerFacts = ContainerFacts()
    verdicts: tuple[CheckVerdict, ...] | None = None
    """Of one check. None: the container was not checked; empty: it has no watch."""


class NodeFacts(Record):
    """The facts about the node that the server stores."""

    name: str
    cluster: str | None = None
    machine: str | None = None
    """32 hex digits made of /etc/machine-id, which itself is a secret (machine-id(5))."""


def node_facts(name: str | None = None, cluster: str | None = None) -> NodeFacts:
    """The facts of this machine; its name is the host's unless one is given."""
    return NodeFacts(name or os.uname().nodename, cluster, _machine())


def _machine() -> str | None:
    try:
        text = files.read_if_there(_MACHINE_ID, limit_bytes=_MACHINE_ID_BYTES)
    except FileError:
        return None
    if not text or not text.strip():
        return None
    return blake2b(text.strip(), key=b"irmapdb", digest_size=16).hexdigest()


def find_databases(config: Config) -> list[bytes]:
    """The databases of the service and of the hook, by name. A missing directory has none."""
    directories = [config.warm.directory, *([config.hook.db] if config.hook.db else [])]
    found: dict[bytes, None] = {}
    for directory in map(os.fsencode, directories):
        try:
            names = sorted(os.listdir(directory))
        except OSError:
            continue
        for name in names:
            path = os.path.join(directory, name)
            if name.endswith(_SUFFIX) and _is_regular(path):
                found[os.path.abspath(path)] = None
    return [*found]


def _is_regular(path: bytes) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def sources(
    databases: Iterable[AnyPath],
    containers: Mapping[str, ContainerFacts] | None = None,
    verdicts: Mapping[str, tuple[CheckVerdict, ...]] | None = None,
) -> list[PushSource]:
    """Each database, with the facts about its container, by the name of the database."""
    found = []
    for path in (os.path.abspath(os.fsencode(one)) for one in databases):
        name = os.fsdecode(os.path.basename(path))
        if not is_container_database(name):
            found.append(PushSource(path))
            continue
        stem = name.removesuffix(".db")
        facts = (containers or {}).get(stem, ContainerFacts())
        found.append(PushSource(path, stem, facts, (verdicts or {}).get(stem)))
    return found
