"""Asks this machine for facts that no database has: names, limits, and CRIU's verdicts.

Facts that cannot be read are left out: the rows of the databases are pushed in any case.
"""

from __future__ import annotations

from datetime import UTC, datetime

from irmapdb.errors import IrmapError
from irmapdb.fleet.sources import CheckVerdict, ContainerFacts, LimitUse
from irmapdb.kernel.proc.containers import find_containers
from irmapdb.log import Log
from irmapdb.node import ps
from irmapdb.node.check_all import NodeCheckOptions, check_all
from irmapdb.node.container_info import describe_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from irmapdb.config import Config
    from irmapdb.node.check_all import ContainerCheck

__all__ = ["containers", "limits", "verdicts"]

_log = Log(__name__)


def containers() -> dict[str, ContainerFacts]:
    """The running containers, by the name of their database without `.db`."""
    try:
        found = find_containers()
        infos = describe_all(found)
    except (IrmapError, OSError) as error:
        _log.warning("containers: %s", error)
        return {}
    facts = {}
    for container, info in zip(found, infos, strict=True):
        namespace, slash, pod = (info.pod or "").rpartition("/")
        facts[container.name.file_stem] = ContainerFacts(
            _printable(info.id),
            _printable(info.name),
            _printable(info.image),
            _printable(pod),
            _printable(namespace) if slash else None,
        )
    return facts


def limits() -> list[LimitUse]:
    """The use of each limit by each user."""
    try:
        users = ps.take(ps.PsOptions()).users
    except (IrmapError, OSError) as error:
        _log.warning("limits: %s", error)
        return []
    return [
        LimitUse(one.account.value, one.uid, one.used, one.limit)
        for one in users
        if one.uid is not None and one.limit is not None
    ]


def verdicts(config: Config) -> dict[str, tuple[CheckVerdict, ...]]:
    """The prediction for the watches of each running container, by database as above."""
    try:
        stems = {one.pid: one.name.file_stem for one in find_containers()}
        checked = check_all(NodeCheckOptions(config=config)).containers
    except (IrmapError, OSError) as error:
        _log.warning("check: %s", error)
        return {}
    at = datetime.now(UTC)
    return {stems[one.pid]: _verdicts_of(one, at) for one in checked if one.pid in stems}


def _verdicts_of(check: ContainerCheck, at: datetime) -> tuple[CheckVerdict, ...]:
    worst = check.worst
    numbers = dict(check.verdicts)
    if worst is not None:
        numbers.setdefault(worst.verdict, 0)
    return tuple(
        CheckVerdict(
            at,
            str(verdict),
            number,
            _printable(worst.why) if worst and worst.verdict == verdict else None,
            _printable(worst.advice) if worst and worst.verdict == verdict else None,
            check.fails,
        )
        for verdict, number in numbers.items()
    )


def _printable(text: str | None) -> str | None:
    # A tenant may have chosen it: PostgreSQL takes neither NUL nor lone surrogates.
    if not text:
        return None
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
