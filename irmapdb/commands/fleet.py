"""Implements `irmapdb fleet`: the rows of all nodes in one PostgreSQL database."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from irmapdb.commands import render
from irmapdb.commands.exit import end_with_findings
from irmapdb.commands.options import (
    AsJson,
    ConfigFile,
    DryRun,
    ServerUrl,
    argument,
    flag,
    server_url,
    span,
    value_option,
)
from irmapdb.errors import UsageError

if TYPE_CHECKING:
    from irmapdb.fleet.check import DatabaseState, FleetState
    from irmapdb.fleet.push import Pushed
    from irmapdb.fleet.schema import SchemaChange
    from irmapdb.fleet.server import Server

__all__ = ["fleet"]

_KEEP = "90d"


fleet = typer.Typer(
    no_args_is_help=True,
    help="Keep the databases of all nodes in one PostgreSQL database.",
)

_Databases = Annotated[
    list[Path] | None,
    argument(
        "[DB]...", "Databases.  [default: all in the directories of `[warm]` and `[hook] db`]"
    ),
]
_Node = Annotated[
    str | None,
    value_option("NAME", "The name of this node.  [default: `[fleet] node`, else the host name]"),
]


@fleet.command()
def init(to: ServerUrl = None, config: ConfigFile = None) -> None:
    """Make the tables and views on the server; upgrade them if they are there.

    The database must exist. Your role must be its owner, or have the right to create tables in it.
    irmapdb needs PostgreSQL 15 or newer. A password comes from PGPASSFILE (`~/.pgpass`) or from a
    service of libpq, never from the URL.

    Example:
        irmapdb fleet init --to postgresql://irmapdb@db.example.org/irmapdb

    """
    from irmapdb.fleet import schema

    server = _server(to, config)
    _say_change(server, schema.init(server))


@fleet.command()
def upgrade(to: ServerUrl = None, config: ConfigFile = None) -> None:
    """Upgrade the tables and views of the server to the newest schema, in one transaction.

    Example:
        irmapdb fleet upgrade --to postgresql://irmapdb@db.example.org/irmapdb

    """
    from irmapdb.fleet import schema

    server = _server(to, config)
    _say_change(server, schema.upgrade(server))


@fleet.command()
def current(to: ServerUrl = None, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Print the schema revision of the server.

    Example:
        irmapdb fleet current --to postgresql://db.example.org/irmapdb

    """
    from irmapdb.fleet import schema

    server = _server(to, config)
    with server.connect() as connection, connection.begin():
        revision = schema.current(connection)
    if as_json:
        document = {"server": server.name, "revision": revision, "newest": schema.HEAD}
        render.print_json(document)
        return
    newest = "" if revision == schema.HEAD else f" (newest: {schema.HEAD})"
    typer.echo(f"{revision or 'no tables of irmapdb'}{newest}")


@fleet.command()
def push(
    databases: _Databases = None,
    to: ServerUrl = None,
    node: _Node = None,
    cluster: Annotated[
        str | None, value_option("NAME", "The cluster of this node.  [default: `[fleet] cluster`]")
    ] = None,
    check_too: Annotated[
        bool,
        flag("--check", "Predict a dump of each running container, and send the verdicts too."),
    ] = False,
    wait: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=0, help="Try a lost connection again for this time."),
    ] = 10,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Send the rows that the server does not have yet.

    These are the runs with their watches, the changes, and the mappings. push also sends the names
    of the running containers, and the use of the inotify and fanotify limits. Each database is one
    transaction, so you can repeat or kill a push at any time: the server has each row once. irmapdb
    upgrades a database of an older schema, and keeps a backup beside it.

    Exits with 3 if irmapdb could not read a database. It pushes the others.

    Examples:
        irmapdb fleet push --to postgresql://push@db.example.org/irmapdb

        irmapdb fleet push --to postgresql:///?service=irmapdb /var/lib/ckpt/irmap.db

    """
    from irmapdb.config import load_config
    from irmapdb.fleet import facts, sources
    from irmapdb.fleet.push import PushOptions
    from irmapdb.fleet.push import push as run

    settings = load_config(config)
    server = _server(to, config)
    paths = sources.find_databases(settings) if databases is None else databases
    about = sources.node_facts(node or settings.fleet.node, cluster or settings.fleet.cluster)
    verdicts = facts.verdicts(settings) if check_too else {}
    found = sources.sources(paths, facts.containers(), verdicts)
    done = run(PushOptions(server, about, found, facts.limits(), wait))
    if as_json:
        document = {"server": server.name, "node": about.name}
        render.print_json({**document, "databases": [render.json_fields(one) for one in done]})
    else:
        _show_pushed(done)
    end_with_findings(any(one.problem for one in done))


def _show_pushed(done: list[Pushed]) -> None:
    if not done:
        render.print_line("no databases")
        return
    rows = [
        (*(f"{number:,}" for number in one.sent), render.shown(one.file))
        for one in done
        if one.sent is not None
    ]
    if rows:
        columns = ("runs>", "watches>", "changes>", "mappings>", "verdicts>", "database")
        render.print_table(columns, rows)
    for one in done:
        if one.problem:
            render.print_line(f"not pushed: {one.problem}")


@fleet.command()
def check(
    databases: _Databases = None,
    to: ServerUrl = None,
    node: _Node = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Check the connection and the schema of the server, and how far this node is behind.

    Exits with 3 if the server lacks a run of a database, if a database was never pushed, if irmapdb
    cannot read it, or if another node has pushed a copy of it.

    Example:
        irmapdb fleet check --to postgresql://push@db.example.org/irmapdb

    """
    from irmapdb.config import load_config
    from irmapdb.fleet import sources
    from irmapdb.fleet.check import check as run

    settings = load_config(config)
    server = _server(to, config)
    paths = sources.find_databases(settings) if databases is None else databases
    name = sources.node_facts(node or settings.fleet.node).name
    state = run(server, name, sources.sources(paths))
    if as_json:
        render.print_json({"server": server.name, **render.json_fields(state)})
    else:
        _show_state(server, state)
    end_with_findings(state.has_findings)


def _show_state(server: Server, state: FleetState) -> None:
    render.print_line(f"{server.name}: reachable, schema {state.revision}")
    pushed = render.time_cell(state.last_push_at) or "never"
    render.print_line(f"node {state.node}: last push {pushed}")
    rows = [
        (
            f"{one.runs_behind:,}",
            f"{one.runs:,}",
            render.time_cell(one.last_push_at) or "never",
            render.shown(one.file),
        )
        for one in state.databases
        if not one.problem
    ]
    if rows:
        render.print_table(("behind>", "runs>", "last push", "database"), rows)
    for one in state.databases:
        _show_finding(one)


def _show_finding(one: DatabaseState) -> None:
    if one.problem:
        render.print_line(f"cannot be read: {one.problem}")
    if one.other_nodes:
        nodes = render.printable_text(", ".join(one.other_nodes))
        render.print_line(f"{render.shown(one.file)}: a copy of it was pushed by {nodes}")


@fleet.command()
def prune(
    to: ServerUrl = None,
    older_than: Annotated[
        str, typer.Option(metavar="SPAN", help="Keep rows for this long: 30d, 26w.")
    ] = _KEEP,
    dry_run: DryRun = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Delete old rows from the server, which keeps all rows otherwise.

    prune deletes the runs, watches and changes of whole weeks. It also deletes mappings that went
    stale before that time, and databases that were not pushed since, with their mappings. Your
    role must own the tables.

    Example:
        irmapdb fleet prune --to postgresql://irmapdb@db.example.org/irmapdb --older-than 26w

    """
    from irmapdb.fleet.prune import prune as run

    keep = span("--older-than", older_than)
    pruned = run(_server(to, config), keep, dry_run=dry_run)
    if as_json:
        before = pruned.before.isoformat()
        render.print_json({**render.json_fields(pruned), "before": before, "dry_run": dry_run})
        return
    verb = "would go" if dry_run else "gone"
    weeks = len({name[-7:] for name in pruned.partitions})
    rest = (
        render.count(pruned.mappings, "mapping"),
        render.count(pruned.databases, "database"),
        render.count(pruned.nodes, "node"),
    )
    render.print_line(
        f"{verb}: {render.count(weeks, 'week')} before {pruned.before}, {', '.join(rest)}"
    )


@fleet.command()
def grant(
    role: Annotated[str, argument("ROLE", "A role of the server.")],
    to: ServerUrl = None,
    push_rows: Annotated[
        bool,
        flag("--push", "Let it push. It sees and changes only the nodes that it pushed first."),
    ] = False,
    namespace: Annotated[
        list[str] | None,
        value_option("NAME", "Let it read the rows of this namespace. Repeatable."),
    ] = None,
    all_namespaces: Annotated[bool, flag("--all", "Let it read all rows.")] = False,
    revoke: Annotated[bool, flag("--revoke", "Revoke all these rights.")] = False,
    config: ConfigFile = None,
) -> None:
    """Let a role of PostgreSQL push, or read the rows of some namespaces of Kubernetes.

    PostgreSQL enforces this by row-level security, in psql and Grafana too. The owner of the tables
    sees all rows.

    Examples:
        irmapdb fleet grant nodes --push --to postgresql://irmapdb@db.example.org/irmapdb

        irmapdb fleet grant team_a --namespace team-a --namespace shared

    """
    from irmapdb.fleet import access

    if push_rows + bool(namespace) + all_namespaces + revoke != 1:
        message = "one of --push, --namespace, --all and --revoke is needed"
        raise UsageError(message, advice="give one of them; run grant again for another")
    server = _server(to, config)
    if revoke:
        access.revoke(server, role)
    elif push_rows:
        access.grant_push(server, role)
    else:
        access.grant_read(server, role, namespace or [access.ALL_NAMESPACES])
    render.say(f"{render.printable_text(role)}: done")


def _server(to: str | None, config: Path | None) -> Server:
    url = server_url(to, config)
    from irmapdb.fleet.server import find_server

    return find_server(url)


def _say_change(server: Server, change: SchemaChange) -> None:
    if change.old == change.new:
        render.say(f"{server.name}: schema {change.new} already")
    elif change.old is None:
        render.say(f"{server.name}: schema {change.new} made")
    else:
        render.say(f"{server.name}: schema {change.old} → {change.new}")
