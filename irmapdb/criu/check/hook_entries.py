"""Predicts the entries of irmap-cache that the hook will write before a dump."""

from __future__ import annotations

import time

from irmapdb.checkpoint.criu_cache import cache_entries, spell_root
from irmapdb.kernel.root import open_root
from irmapdb.resolve.search import Search

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from irmapdb.config import Config
    from irmapdb.kernel.proc.survey import Survey
    from irmapdb.kernel.proc.tasks import Task
    from irmapdb.model import CacheEntry, WatchFile

__all__ = ["hook_entries"]

_PATIENCE_S = 8.0
"""As long as the hook itself may search by default."""


def hook_entries(
    found: Sequence[Task], survey: Survey, watched: Sequence[WatchFile], config: Config
) -> list[CacheEntry]:
    """The entries for these tasks, the root task first: found and proved now, and not written.

    TaskError as `open_root`. It looks up each path, as the hook does.
    """
    deadline = time.monotonic() + _PATIENCE_S

    def over() -> bool:
        return time.monotonic() > deadline

    with open_root(found[0].pid) as root:
        root.adopt(config)
        with Search(root, config=config, over=over) as search:
            search.add_holders(task.pid for task in found)
            search.add_owners(survey.owners())
            search.resolve(watched)
            spell_root(search.outcome)
            identities = (watch.identity for file in watched for watch in file.watches)
            return cache_entries(search.outcome, identities, root)
