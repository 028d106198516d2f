"""Implements `irmapdb db`: the schema of a database, and copies of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from irmapdb.commands import render
from irmapdb.commands.options import (
    AsJson,
    Database,
    WorkDirOption,
    argument,
    database_path,
)
from irmapdb.errors import UsageError

__all__ = ["db"]


db = typer.Typer(
    no_args_is_help=True, help="The database's schema: upgrade, current, history, backup."
)


@db.command()
def upgrade(work_dir: WorkDirOption = None, db: Database = None) -> None:
    """Upgrade a database to the newest schema, and keep a backup beside it.

    Commands that write do this by themselves. Commands that only read ask you to run it. If the
    upgrade fails, the database stays as it was.

    Example:
        irmapdb db upgrade --db /var/lib/ckpt/irmap.db

    """
    from irmapdb.store import revisions

    database = database_path(db, work_dir)
    done = revisions.upgrade(database)
    name = render.shown(database)
    if done.backup is None:
        render.say(f"{name}: schema {done.new} already")
    else:
        kept = render.shown(done.backup)
        render.say(f"{name}: schema {done.old} → {done.new}, the old one kept as {kept}")


@db.command()
def current(work_dir: WorkDirOption = None, db: Database = None, as_json: AsJson = False) -> None:
    """Print the schema revision of a database.

    Example:
        irmapdb db current -W /var/lib/ckpt

    """
    from irmapdb.store import revisions, version

    database = database_path(db, work_dir)
    revision = revisions.current(database)
    if as_json:
        document = {"database": str(database), "revision": revision, "newest": version.HEAD}
        render.print_json(document)
    else:
        newest = "" if revision == version.HEAD else f" (newest: {version.HEAD})"
        typer.echo(f"{revision}{newest}")


@db.command()
def history(as_json: AsJson = False) -> None:
    """List the schema revisions that this irmapdb knows, oldest first.

    Example:
        irmapdb db history

    """
    from irmapdb.store import revisions

    known = revisions.history()
    if as_json:
        render.print_json([revision._asdict() for revision in known])
    else:
        render.print_table(("revision", "what it did"), ((one.id, one.subject) for one in known))


@db.command()
def backup(
    destination: Annotated[Path, argument("COPY", "A new file.")],
    work_dir: WorkDirOption = None,
    db: Database = None,
) -> None:
    """Copy a database. Another process may write it meanwhile.

    Example:
        irmapdb db backup -W /var/lib/ckpt /root/irmap-2026-11-23.db

    """
    from irmapdb.store import revisions

    if str(destination) == "-":
        raise UsageError("a database cannot be written to stdout", advice="name a new file")
    database = database_path(db, work_dir)
    revisions.backup(database, destination)
    render.say(f"{render.shown(database)} copied to {render.shown(destination)}")
