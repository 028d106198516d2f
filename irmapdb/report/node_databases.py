"""Finds the databases of a node, and the names of their containers."""

from __future__ import annotations

import os

from irmapdb.fleet.sources import find_databases
from irmapdb.kernel.proc.containers import find_containers
from irmapdb.node.container_info import describe_all
from irmapdb.report.collect import Database

TYPE_CHECKING = False
if TYPE_CHECKING:
    from irmapdb.config import Config

__all__ = ["node_databases"]

_ID_DIGITS = 64
_SHORT_DIGITS = 12


def node_databases(config: Config) -> list[Database]:
    """The databases of the service and of the hook, also those of containers that have ended.

    Each is called as its container, or by its file name if that container does not run.
    """
    containers = find_containers()
    infos = describe_all(containers)
    labels = {one.name.file_stem: info.label for one, info in zip(containers, infos, strict=True)}
    return [Database(path, _label(path, labels)) for path in find_databases(config)]


def _label(path: bytes, labels: dict[str, str]) -> str:
    stem = os.fsdecode(os.path.basename(path)).removesuffix(".db")
    return labels.get(stem) or (stem[:_SHORT_DIGITS] if len(stem) >= _ID_DIGITS else stem)
