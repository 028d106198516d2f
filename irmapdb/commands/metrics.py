"""Implements `irmapdb metrics`: the figures of this machine for Prometheus."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

from irmapdb.commands import render
from irmapdb.commands.options import (
    CgroupGlob,
    ConfigFile,
    RunDir,
    flag,
    path_option,
)

__all__ = ["metrics"]

_READABLE_BY_ALL = 0o644
_CONTAINER_S = 5.0
"""The time for the prediction for one container."""


def metrics(
    textfile: Annotated[
        Path | None,
        path_option(
            "--textfile",
            metavar="FILE",
            text="Replace FILE as a whole, for the textfile collector of node_exporter.",
        ),
    ] = None,
    check: Annotated[
        bool, flag("--check/--no-check", "Predict a dump of each container, as `check --all` does.")
    ] = True,
    cgroup: CgroupGlob = None,
    run_dir: RunDir = Path("/run/irmapdb"),
    config: ConfigFile = None,
) -> None:
    """Print metrics of this machine in the text format of Prometheus.

    The metrics are the inotify and fanotify limits and their use by each user, the watches and the
    verdict of each container, the runs of the hook, and the freezes of CRIU. Labels are containers,
    pods, images and users, never paths or process ids. The service serves the same metrics on a
    port or socket, if `[metrics] listen` in `/etc/irmapdb.toml` names one.

    Examples:
        irmapdb metrics

        irmapdb metrics --textfile /var/lib/node_exporter/irmapdb.prom

    """
    from irmapdb import files
    from irmapdb.config import load_config
    from irmapdb.errors import FileError
    from irmapdb.node.check_all import NodeCheckOptions, check_all
    from irmapdb.node.exposition import exposition
    from irmapdb.node.metrics import MetricsOptions, collect

    if os.geteuid() != 0:
        # Figures of the caller's tasks alone would look like those of an idle machine.
        message = "metrics reads the tasks of all users"
        raise FileError(message, advice="run it as root")
    settings = load_config(config)
    wanted = NodeCheckOptions(config=settings, cgroup=cgroup, patience_s=_CONTAINER_S)
    checked = check_all(wanted) if check else None
    text = exposition(collect(MetricsOptions(run_dir, settings, cgroup, check=checked)))
    if textfile is None:
        sys.stdout.write(text.decode())
        return
    files.replace_whole(textfile, text, mode=_READABLE_BY_ALL)
    if textfile.suffix != ".prom":
        render.say("node_exporter reads only files whose names end with .prom")
