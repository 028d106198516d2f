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
    from collections.abc import Iterable, Sequence

    from irmapdb.config import Config
    from irmapdb.model import AnyPath

__all__ = ["ContainerFacts", "NodeFacts", "Source", "find_databases", "node_facts", "sources"]

_MACHINE_ID = b"/etc/machine-id"
_MACHINE_ID_BYTES = 64
_SUFFIX = b".db"


class ContainerFacts(Record):
    """The names of the container that a database belongs to; None where they are not known."""

    container: str | None = None
    """The engine's id, or the last part of the cgroup with a digest."""
    container_name: str | None = None
    image: str | None = None
    pod: str | None = None
    namespace: str | None = None
    """Of Kubernetes. Row-level security goes by it."""


class Source(Record):
    """One database of this node."""

    file: bytes
    """Absolute."""
    container: ContainerFacts = ContainerFacts()


class NodeFacts(Record):
    """What is stored about the node."""

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


def sources(databases: Iterable[AnyPath]) -> Sequence[Source]:
    """Each database with what is known about its container."""
    return [_source(os.path.abspath(os.fsencode(path))) for path in databases]


def _source(path: bytes) -> Source:
    name = os.fsdecode(os.path.basename(path))
    if not is_container_database(name):
        return Source(path)
    return Source(path, ContainerFacts(container=name.removesuffix(".db")))
