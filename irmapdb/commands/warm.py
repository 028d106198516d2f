"""Implements `irmapdb warm`: the service, its status and its installation."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from irmapdb.commands import render
from irmapdb.commands.exit import end_with_findings
from irmapdb.commands.options import (
    AsJson,
    CgroupGlob,
    ConfigFile,
    RunDir,
    flag,
    positive_seconds,
    value_option,
)
from irmapdb.errors import FileError, UsageError
from irmapdb.model import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from irmapdb.config import Config

__all__ = ["warm"]

_A_FEW = 5


def warm(
    once: Annotated[
        bool, flag("--once", "Read the containers once, prove the paths, and end.")
    ] = False,
    interval: Annotated[
        float | None,
        value_option(
            "SECONDS",
            "Read the containers again after this time.  [default: 60]",
            callback=positive_seconds,
        ),
    ] = None,
    cgroup: CgroupGlob = None,
    status: Annotated[
        bool, flag("--status", "Show each container, and its watches without a path.")
    ] = False,
    install: Annotated[
        bool, flag("--install", "Install a systemd unit, and start the service.")
    ] = False,
    uninstall: Annotated[
        bool, flag("--uninstall", "Stop the service, and remove the unit.")
    ] = False,
    unit_dir: Annotated[
        Path, typer.Option(readable=False, metavar="DIR", help="Directory of systemd's units.")
    ] = Path("/etc/systemd/system"),
    run_dir: RunDir = Path("/run/irmapdb"),
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Keep the paths of all containers of this machine ready for CRIU, until SIGTERM.

    warm is a service. It finds the containers by itself, proves the path of every watch, and keeps
    a database for each container in `/var/lib/irmapdb`. It runs a pre-dump of a container only if
    the watches or mounts have changed, or if a part of a path was renamed. This work has idle
    priority. When CRIU calls the hook, the service proves the paths again and writes
    `irmap-cache`. The hook then starts no Python. `[warm]` in `/etc/irmapdb.toml` has the settings.

    With --status or --once, exits with 3 if irmapdb could not read a container, or if a watch has
    no path.

    Examples:
        irmapdb warm --once

        irmapdb warm --interval 30 --cgroup '/kubepods*'

        irmapdb warm --status

        irmapdb warm --install --cgroup '/kubepods*'

    """
    from irmapdb.config import load_config
    from irmapdb.node.rundir import RunDirectory
    from irmapdb.node.service import Service, ServiceOptions
    from irmapdb.node.service_lock import ServiceLock

    if once + status + install + uninstall > 1:
        message = "--once, --status, --install and --uninstall do not go together"
        raise UsageError(message, advice="run one after the other")
    if status:
        document = RunDirectory(run_dir, make=False).read_status()
        _show_status(document, ServiceLock(run_dir).running(), run_dir, as_json=as_json)
        return
    if install or uninstall:
        arguments = _arguments(interval, cgroup, config)
        _switch(arguments, load_config(config), unit_dir, on=install)
        return
    settings = load_config(config)
    push = _push_command(settings, config)
    options = ServiceOptions(run_dir, settings, interval, cgroup, push)
    with Service(options) as service:
        if not once:
            service.run()
            return
        document = service.once()
    _end(document, as_json=as_json)


def _arguments(interval: float | None, cgroup: str | None, config: Path | None) -> list[str]:
    # As the unit starts it.
    arguments = [sys.executable, "-m", "irmapdb", "warm"]
    if interval is not None:
        arguments += ["--interval", f"{interval:g}"]
    if cgroup is not None:
        arguments += ["--cgroup", cgroup]
    if config is not None:
        arguments += ["--config", str(config.absolute())]
    return arguments


def _push_command(settings: Config, config: Path | None) -> tuple[str, ...]:
    if settings.fleet.url is None:
        return ()
    command = (sys.executable, "-m", "irmapdb", "fleet", "push", "--check", "--quiet")
    return command if config is None else (*command, "--config", str(config.absolute()))


def _switch(command: Sequence[str], config: Config, unit_dir: Path, *, on: bool) -> None:
    from irmapdb.node import unit

    if on:
        databases = Path(os.fsdecode(config.warm.directory))
        listen = config.metrics.listen
        with_port = listen is not None and not listen.path
        has_server = config.fleet.url is not None
        path = unit.install(
            command, databases, unit_dir, with_port=with_port, with_server=has_server
        )
        render.print_line(f"wrote {printable(path)}")
        if not unit.systemd_runs():
            render.say("systemd does not run here, so start the service by hand: `irmapdb warm`")
        return
    removed = unit.uninstall(unit_dir)
    render.print_line("there is no unit" if removed is None else f"removed {printable(removed)}")


def _show_status(
    document: Mapping[str, Any] | None, running: int | None, run_dir: Path, *, as_json: bool
) -> None:
    if document is None:
        message = f"{run_dir}: no service has run here since this machine was started"
        raise FileError(
            message,
            advice="start it with `irmapdb warm --install`, or without systemd with `irmapdb warm`",
        )
    if not as_json:
        _show_push(document.get("push"))
        age_s = max(0.0, time.time() - document["written_at"])
        state = f"process {running}" if running else "not running"
        render.print_line(f"service: {state}; last look {_span(age_s)} ago")
    _end({**document, "running": running}, as_json=as_json)


def _show_push(push: Mapping[str, Any] | None) -> None:
    if push is None:
        return
    at_s = push["pushed_at"]
    ago = "none yet" if at_s is None else f"{_span(max(0.0, time.time() - at_s))} ago"
    problem = f"; the last one failed: {push['problem']}" if push["problem"] else ""
    render.print_line(f"last push: {ago}{problem}")


def _end(document: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        render.print_json(document)
    else:
        _show(document["containers"])
    end_with_findings(any(one["no_path"] or one["problem"] for one in document["containers"]))


def _show(containers: Sequence[Mapping[str, Any]]) -> None:
    if not containers:
        render.print_line("no containers")
        return
    now_s = time.time()
    rows = [
        (
            str(one["pid"]),
            str(one["tasks"]),
            str(one["watches"]),
            str(one["resolved"]),
            "-" if one["proved_at"] is None else f"{_span(now_s - one['proved_at'])} ago",
            one["state"],
            one["id"],
        )
        for one in containers
    ]
    columns = ("pid>", "tasks>", "watches>", "paths>", "proved>", "state", "container")
    render.print_table(columns, rows)
    for one in containers:
        if one["problem"]:
            render.print_line(f"{one['id']}: {one['problem']}")
        for row in one["no_path"][:_A_FEW]:
            watch = f"{row['kind']} fd {row['fd']} of {row['pid']} ({row['comm']})"
            render.print_line(
                f"{one['id']}: no path: {watch}, {row['dev']} {row['ino']}: {row['why']}"
            )
        missing = one["watches"] - one["resolved"]
        if one["no_path"] and missing > _A_FEW:
            render.print_line(f"{one['id']}: and {missing - _A_FEW} more without a path")


def _span(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
