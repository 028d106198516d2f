"""Implements `irmapdb report`."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from irmapdb import __version__, files
from irmapdb.commands import render
from irmapdb.commands.options import (
    ConfigFile,
    Database,
    WorkDirOption,
    database_path,
    flag,
    path_option,
    value_option,
)
from irmapdb.errors import UsageError

if TYPE_CHECKING:
    from irmapdb.config import Config
    from irmapdb.report.collect import Report

__all__ = ["report"]


def report(
    output: Annotated[
        Path,
        path_option(
            "-o", "--output", metavar="FILE", text="The page. irmapdb replaces it as a whole."
        ),
    ],
    work_dir: WorkDirOption = None,
    db: Database = None,
    container: Annotated[
        str | None,
        value_option(
            "ID|NAME",
            "The container of the report: its id, the beginning of the id, its name, or its pod.",
        ),
    ] = None,
    every: Annotated[
        bool, flag("--all", "A report on all databases and containers of this machine.")
    ] = False,
    server: Annotated[
        str | None,
        value_option("URL", "A report on all nodes, by this server of `irmapdb fleet`.", "--from"),
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Write a report as one HTML page.

    The report shows a prediction for the next checkpoint, the time for which each of the
    last dumps stopped the tasks, the watched directories, the stale paths, and the users near a
    limit. Each figure has its query. The page needs no network and runs no script.

    Without --all and --from, the report is about one database: --db, irmap.db in the work dir, or
    with --container the database that the service or the hook keeps for this container, if there is
    one. With --container or --all, the page has the predictions of `irmapdb check` for the running
    containers.

    Only the user who calls irmapdb can read the page, because it has the paths of the containers.
    The extra `irmapdb[report]` has the packages that this command needs. If one is missing, the
    error message has the command that installs it.

    Examples:
        irmapdb report -W /var/lib/ckpt -o report.html

        irmapdb report --container web -o web.html

        irmapdb report --all -o node.html

        irmapdb report --from postgresql://reader@db.example.org/irmapdb -o fleet.html

    """
    from irmapdb.config import load_config
    from irmapdb.report.page import page

    _refuse_two_subjects(every, server, container, db, work_dir)
    loaded = load_config(config)
    if server is not None:
        collected = _of_fleet(server)
    elif every:
        collected = _of_node(loaded)
    else:
        collected = _of_one(loaded, container, db, work_dir)
    files.replace_whole(output, page(collected, __version__))
    for problem in collected.problems:
        # A tenant may have chosen the label of a database; the error has escapes already.
        render.say(problem if problem.isprintable() else render.printable_text(problem))
    render.say(f"wrote {render.shown(output)}")


def _refuse_two_subjects(
    every: bool, server: str | None, container: str | None, db: Path | None, work_dir: Path | None
) -> None:
    one = container is not None or db is not None or work_dir is not None
    if sum((every, server is not None, one)) > 1:
        message = "--all, --from, and one container or database exclude each other"
        raise UsageError(message, advice="give one of them")


def _of_fleet(url: str) -> Report:
    from irmapdb.fleet.server import find_server
    from irmapdb.report.collect import collect_fleet

    return collect_fleet("All nodes of the fleet", find_server(url))


def _of_node(config: Config) -> Report:
    from irmapdb.node import ps
    from irmapdb.node.check_all import NodeCheckOptions, check_all
    from irmapdb.report.collect import collect_databases
    from irmapdb.report.node_databases import node_databases

    checked = check_all(NodeCheckOptions(config=config))
    return collect_databases(
        f"Containers of {os.uname().nodename}",
        node_databases(config),
        several=True,
        users=ps.take(ps.PsOptions(config=config)).users,
        checks=checked.containers,
    )


def _of_one(
    config: Config, container: str | None, db: Path | None, work_dir: Path | None
) -> Report:
    from irmapdb.node import ps
    from irmapdb.report.collect import Database as OneDatabase
    from irmapdb.report.collect import collect_databases

    about, checks, paths = "", None, [os.fsencode(database_path(db, work_dir))]
    if container is None:
        about = f"Database {render.shown(paths[0])}"
    else:
        from irmapdb.kernel.proc.containers import find_database
        from irmapdb.node.check_all import NodeCheckOptions, check_all
        from irmapdb.node.container_info import describe_all, find_container

        found = find_container(container)
        (info,) = describe_all([found])
        about = f"Container {info.label}"
        checked = check_all(NodeCheckOptions(config=config, cgroup=glob.escape(info.cgroup)))
        checks = [one for one in checked.containers if one.info.id == info.id]
        if db is None and work_dir is None:
            places = (config.warm.directory, config.hook.db)
            known = (find_database(place, found.pid) for place in places if place)
            paths = [path for path in known if path][:1]
    databases = [OneDatabase(path, render.shown(path)) for path in paths]
    users = ps.take(ps.PsOptions(config=config)).users
    return collect_databases(about, databases, users=users, checks=checks)
