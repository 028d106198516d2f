"""Does the whole search for a script that has no program to start, as on a host without Python.

A child of the service does the work of the hook in CRIU's work dir, also in a pause, with the time
limit and with an old irmap-cache (`criu.hook_job`). It stores nothing: the service reads the
container again after the request.
"""

from __future__ import annotations

import os
from pathlib import Path

from irmapdb.criu.hook_job import Job, serve
from irmapdb.errors import IrmapError
from irmapdb.kernel.proc import tasks
from irmapdb.node.answer import DONE, NOT_SERVED, Reply, Request, open_work_dir

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from irmapdb.config import Config
    from irmapdb.criu.hook_job import Done
    from irmapdb.node.rundir import RunDirectory

__all__ = ["search"]

_LIMIT_S = 8.0
"""The time limit: the script waits for 10 s."""


def search(
    request: Request,
    config: Config,
    run: RunDirectory,
    tell: Callable[[Reply], object],
    begun_s: float,
) -> Reply:
    """Search, write irmap-cache into the work dir of CRIU, and `tell` the script, once.

    The script waits for it already, since `begun_s` (time.monotonic()). Changes the cwd. If the
    time is up, it writes the proved paths, and the process ends here.
    """
    try:
        pids = {task.pid for task in tasks.task_tree(request.pid)}
        with open_work_dir(request, pids) as work:
            os.chdir(work)
            reply = _search(request, Path(work), config, run, tell, begun_s)
            reply = reply._replace(work=os.getcwdb())
    except (OSError, IrmapError) as error:
        reply = Reply(NOT_SERVED, str(error))
    tell(reply)
    return reply


def _search(
    request: Request,
    work: Path,
    config: Config,
    run: RunDirectory,
    tell: Callable[[Reply], object],
    begun_s: float,
) -> Reply:
    limit_s = min(config.hook.timeout_s, _LIMIT_S)

    def too_late(done: Done) -> None:
        tell(_reply(done))
        os._exit(0)

    served = serve(
        Job(
            request.pid,
            "",
            config,
            config.hook._replace(timeout_s=limit_s, timeout_is_set=True),
            begun_s,
            abandoned=lambda: not run.is_waiting(request.reply),
            too_late=too_late,
            work=work,
        )
    )
    return _reply(served.done)


def _reply(done: Done) -> Reply:
    text = "; ".join((done.summary, *done.problems))
    return Reply(
        DONE if done.fresh else NOT_SERVED,
        f"the service: {text}",
        changed=True,
        paused=done.paused,
        watches=done.watches,
        resolved=done.resolved,
    )
