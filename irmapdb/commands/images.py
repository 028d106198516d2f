"""Implements `irmapdb import`, `export`, `convert` and `show`: the cache, images and archives."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from irmapdb.commands import render
from irmapdb.commands.dumped_rows import (
    dumped_json,
    fsnotify_json,
    print_dumped,
    print_fsnotify,
    print_stats,
)
from irmapdb.commands.input_file import regular_input
from irmapdb.commands.options import (
    AsJson,
    ConfigFile,
    Database,
    WorkDirOption,
    argument,
    database_path,
    flag,
)
from irmapdb.errors import UsageError
from irmapdb.image.formats import Format

if TYPE_CHECKING:
    from irmapdb.convert import Content

__all__ = ["convert", "export", "import_", "show"]

_ANY_FORM = (
    "An irmap-cache, its JSON, or a database; inotify.img, fanotify.img, files.img; an images dir, "
    "or the archive of a checkpoint. `-` is stdin, and a database cannot come from stdin."
)
_Pretty = Annotated[
    bool, flag("--pretty", "Print indented JSON, with devices as crit prints them.")
]


def import_(
    image: Annotated[Path, argument("IMAGE", _ANY_FORM)],
    work_dir: WorkDirOption = None,
    db: Database = None,
    config: ConfigFile = None,
) -> None:
    """Add the entries of an image to the database.

    An image of watches, an images dir or an archive gives an entry for each watch with a path. Each
    entry has the state *revalidate*: irmapdb proves it before use. import also stores and counts
    the entries with an impossible path (empty, relative, with NUL, `.` or `..`). `[retention]` in
    the configuration sets the limits for old rows.

    Examples:
        irmapdb import /var/lib/ckpt/irmap-cache

        crit decode -i irmap-cache | irmapdb import - --db irmap.db

        irmapdb import checkpoint.tar.zst --db irmap.db

    """
    from irmapdb.config import load_config
    from irmapdb.convert import import_image

    database = database_path(db, work_dir)
    imported = import_image(regular_input(image), database, load_config(config).retention)
    _say_entries(imported.entries, "imported into", database)
    if imported.unusable:
        paths = render.count(imported.unusable, "path")
        render.say(
            f"{paths} unusable (empty, relative, with NUL, an empty name, `.` or `..`): kept, but "
            "no step will hand them to CRIU"
        )


def export(
    image: Annotated[
        Path | None,
        argument(
            "[IMAGE]", "The file to write; `-` is stdout.  [default: irmap-cache in the work dir]"
        ),
    ] = None,
    work_dir: WorkDirOption = None,
    db: Database = None,
) -> None:
    """Write the paths of the database into the `irmap-cache` that CRIU loads.

    export leaves out stale mappings, and writes the others as they are stored. It proves none of
    them: to prove them, run pre-dump. It replaces the file as a whole.

    Examples:
        irmapdb export -W /var/lib/ckpt

        irmapdb export --db irmap.db - | crit decode

    """
    from irmapdb.checkpoint.work_dir import CACHE_NAME
    from irmapdb.convert import encode, export_image, read_database

    database = database_path(db, work_dir)
    if str(image) == "-":
        render.write_image(encode(read_database(database), Format.PB))
        return
    destination = (work_dir or Path()) / CACHE_NAME if image is None else image
    entries = export_image(database, destination)
    _say_entries(entries, "exported to", destination)


def _say_entries(entries: int, what: str, place: Path) -> None:
    render.say(f"{render.count(entries, 'entry', 'entries')} {what} {render.shown(place)}")


def convert(
    source: Annotated[Path, argument("SRC", _ANY_FORM)],
    destination: Annotated[Path, argument("DST", "`-` is stdout, for pb and json.")],
    to: Annotated[
        Format | None,
        typer.Option(
            help="The format to write.  [default: by DST's name: .json, .db; else pb]",
            show_default=False,
        ),
    ] = None,
    pretty: _Pretty = False,
) -> None:
    """Convert between CRIU's image (pb), crit's JSON (json) and a database (db).

    The type of SRC is detected from its content. A name that is not UTF-8 keeps its bytes: JSON has
    each such byte as a lone surrogate (PEP 383).

    Examples:
        irmapdb convert irmap-cache cache.json --pretty

        irmapdb convert irmap.db irmap-cache

        irmapdb convert irmap-cache - --to json

    """
    from irmapdb import convert as forms

    form = to or forms.format_for(destination)
    if pretty and form is not Format.JSON:
        message = f"--pretty, and the form to write is {form}"
        raise UsageError(message, advice="add --to json: --pretty is for JSON alone")
    if str(destination) == "-":
        if form is Format.DB:
            raise UsageError("a database cannot be written to stdout", advice="name a file")
        content = forms.read(regular_input(source))
        data = forms.encode(content.entries, form, pretty=pretty)
        (render.write_image if form is Format.PB else render.write_json)(data)
        return
    source = regular_input(source)
    content = forms.convert(source, destination, form, pretty=pretty)
    entries = render.count(len(content.entries), "entry", "entries")
    before, after = render.shown(source), render.shown(destination)
    render.say(f"{entries}: {content.format} {before} → {form} {after}")


def show(
    file: Annotated[Path, argument("FILE", _ANY_FORM)],
    as_json: AsJson = False,
    pretty: _Pretty = False,
) -> None:
    """Print the content of a file of irmapdb or CRIU.

    The type of FILE is detected from its content:

    - An irmap-cache, its JSON, or a database: the entries for irmap-cache.
    - inotify.img, fanotify.img, files.img: the watches, with the paths that CRIU recorded.
    - stats-dump, stats-restore: the times and numbers of pages.
    - An images dir, or the archive of a checkpoint (tar, gzip, zstd): the container, and for each
      watch the source of its path at a restore.

    Examples:
        irmapdb show irmap-cache

        irmapdb show irmap.db --json

        irmapdb show checkpoint.tar.zst

    """
    from irmapdb.archive.kind import FileKind, kind_of

    file = regular_input(file)
    kind = kind_of(file)
    if kind is FileKind.CACHE:
        _show_cache(file, as_json=as_json, pretty=pretty)
        return
    if pretty:
        message = f"--pretty, and {render.shown(file)} is no irmap-cache"
        raise UsageError(message, advice="give --json: --pretty is for an irmap-cache alone")
    if kind is FileKind.STATS:
        from irmapdb import files
        from irmapdb.image.stats import decode_stats

        data = files.read_whole(file, limit_bytes=files.LIMIT_BYTES)
        stats = decode_stats(data, render.shown(file))
        if as_json:
            render.print_json(render.json_fields(stats))
        else:
            print_stats(stats)
    elif kind is FileKind.CHECKPOINT:
        from irmapdb.archive.dumped import read_dumped

        dumped = read_dumped(file)
        if as_json:
            render.print_json(dumped_json(dumped))
        else:
            print_dumped(dumped)
    else:
        from irmapdb.archive.watches import read_image

        found = read_image(file, kind)
        if as_json:
            render.print_json(fsnotify_json(found, str(kind)))
        else:
            print_fsnotify(found)


def _show_cache(file: Path, *, as_json: bool, pretty: bool) -> None:
    from irmapdb import convert as forms

    content = forms.read(file)
    if as_json or pretty:
        render.write_json(forms.encode(content.entries, Format.JSON, pretty=pretty))
        return
    _print_entries(content)


def _print_entries(content: Content) -> None:
    from irmapdb.model import format_kdev

    if content.entries:
        render.print_table(
            ("dev>", "ino>", "criu's log", "path"),
            (
                (
                    format_kdev(entry.kdev),
                    str(entry.ino),
                    str(entry.key),
                    render.printable(entry.path),
                )
                for entry in content.entries
            ),
        )
    render.say(f"{render.count(len(content.entries), 'entry', 'entries')} ({content.format})")
