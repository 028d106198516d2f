"""Formats the watches of images for tables and JSON, for `check --images`, `show` and `diff`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from irmapdb.commands import render
from irmapdb.commands.watch_rows import wd_cell

if TYPE_CHECKING:
    from collections.abc import Iterable

    from irmapdb.archive.container import DumpedContainer
    from irmapdb.archive.dumped import Dumped
    from irmapdb.image.fsnotify import FsnotifyFile, FsnotifyWatch, MountMark
    from irmapdb.image.stats import CriuStats

__all__ = [
    "IMAGE_COLUMNS",
    "container_json",
    "dumped_json",
    "fsnotify_json",
    "image_cells",
    "inode_text",
    "path_text",
    "print_container",
    "print_dumped",
    "print_fsnotify",
    "print_sources",
    "print_stats",
    "wd_of",
]

_MANY = 20
IMAGE_COLUMNS = ("file>", "kind", "wd>", "inode")


def wd_of(watch: FsnotifyWatch | MountMark) -> int | None:
    """inotify's watch descriptor; None for fanotify."""
    one = _on_inode(watch)
    return None if one is None or one.wd < 0 else one.wd


def inode_text(watch: FsnotifyWatch | MountMark) -> str:
    """DEVICE:INODE as in CRIU's log, or `mount ID`."""
    one = _on_inode(watch)
    return f"mount {watch.mnt_id}" if one is None else str(one.identity.key)


def _on_inode(watch: FsnotifyWatch | MountMark) -> FsnotifyWatch | None:
    from irmapdb.image.fsnotify import FsnotifyWatch

    return watch if isinstance(watch, FsnotifyWatch) else None


def path_text(path: bytes | None) -> str:
    """The path for a table; `-` if there is none."""
    return "-" if path is None else render.printable(path)


def image_cells(file: FsnotifyFile, watch: FsnotifyWatch | MountMark) -> tuple[str, ...]:
    """The cells of IMAGE_COLUMNS."""
    return str(file.id), str(file.kind), wd_cell(wd_of(watch)), inode_text(watch)


# --- checkpoints ----------------------------------------------------------------------------------


def print_container(container: DumpedContainer) -> None:
    """Lines about the container; none if the images are of no engine."""
    if not container.is_of_engine:
        return
    name = container.name or container.id or "?"
    known = [part for part in (container.id[:12] if container.name else "",) if part]
    known += [f"pod {container.pod}"] if container.pod else []
    told = f"{name} ({', '.join(known)})" if known else name
    runtime = f" with {container.runtime}" if container.runtime else ""
    known_version = f"CRIU {container.criu_version}" if container.criu_version else ""
    version = known_version or "CRIU (its version is not in the checkpoint)"
    render.print_line(f"container {render.printable_text(told)}")
    render.print_line(f"image {render.printable_text(container.image or '?')}")
    render.print_line(f"{container.engine}{render.printable_text(runtime)}, {version}")


def container_json(container: DumpedContainer) -> dict[str, Any] | None:
    """The container in our JSON; None if the images are of no engine."""
    if not container.is_of_engine:
        return None
    found = render.json_fields(container, "engine runtime id name image pod criu_version")
    return {name: text or None for name, text in found.items()}


def print_dumped(dumped: Dumped) -> None:
    """The content of a checkpoint."""
    print_container(dumped.container)
    if dumped.watches:
        render.print_table(
            (*IMAGE_COLUMNS, "mask>", "from", "path"),
            (
                (
                    *image_cells(one.file, one.watch),
                    f"{one.watch.mask:x}",
                    one.word,
                    path_text(one.watch.path),
                )
                for one in dumped.watches
            ),
        )
    print_sources(
        (one.origin.what, one.origin.mount_source) for one in dumped.watches if one.origin
    )
    if dumped.stats is not None and "frozen_us" in dumped.stats.figures:
        frozen_ms = dumped.stats.figures["frozen_us"] / 1000
        render.print_line(f"CRIU froze the tasks for {frozen_ms:,.1f} ms")
    render.say(render.count(len(dumped.watches), "watch", "watches"))


def print_sources(mounts: Iterable[tuple[str, bytes | None]]) -> None:
    """The sources of bind mounts and the mounts that need them: the target host must have them."""
    found = sorted({(what, source) for what, source in mounts if source is not None})
    for what, source in found[:_MANY]:
        render.print_line(f"{what}: {render.printable(source)} on the target host")
    if len(found) > _MANY:
        render.print_line(f"… and {len(found) - _MANY:,} more (--json has all)")


def dumped_json(dumped: Dumped) -> dict[str, Any]:
    """The content of a checkpoint in our JSON."""
    return {
        "checkpoint": str(dumped.files_img),
        "container": container_json(dumped.container),
        "stats": dumped.stats and render.json_fields(dumped.stats),
        "watches": [
            {
                **_watch_json(one.file, one.watch),
                "origin": one.kind,
                "from": one.where,
                "source": render.json_path(one.origin.source if one.origin else None),
            }
            for one in dumped.watches
        ],
    }


# --- single images --------------------------------------------------------------------------------


def print_fsnotify(files: Iterable[FsnotifyFile]) -> None:
    """The watches and marks of `inotify.img`, `fanotify.img` or `files.img`."""
    every = [*_every(files)]
    if every:
        render.print_table(
            (*IMAGE_COLUMNS, "mask>", "path"),
            (
                (*image_cells(file, watch), f"{watch.mask:x}", path_text(watch.path))
                for file, watch in every
            ),
        )
    render.say(render.count(len(every), "watch", "watches"))


def fsnotify_json(files: Iterable[FsnotifyFile], kind: str) -> dict[str, Any]:
    """The same in our JSON."""
    return {"image": kind, "watches": [_watch_json(*one) for one in _every(files)]}


def _every(
    files: Iterable[FsnotifyFile],
) -> Iterable[tuple[FsnotifyFile, FsnotifyWatch | MountMark]]:
    for file in files:
        yield from ((file, watch) for watch in file.watches)
        yield from ((file, mark) for mark in file.mount_marks)


def _watch_json(file: FsnotifyFile, watch: FsnotifyWatch | MountMark) -> dict[str, Any]:
    identity = one.identity if (one := _on_inode(watch)) is not None else None
    handle = None if identity is None else identity.handle
    return {
        "file": file.id,
        "kind": file.kind,
        "wd": wd_of(watch),
        "dev": _kdev(watch),
        "ino": None if identity is None else identity.ino,
        "handle": None if handle is None else str(handle),
        **render.json_fields(watch, "mnt_id mask path"),
    }


def _kdev(watch: FsnotifyWatch | MountMark) -> int:
    from irmapdb.image.fsnotify import MountMark

    return watch.kdev if isinstance(watch, MountMark) else watch.identity.kdev


def print_stats(stats: CriuStats) -> None:
    """The figures of a dump or restore."""
    render.print_table(
        (f"figure of the {stats.of}", "value>"),
        (
            (name.removesuffix("_us"), f"{value:,} {'µs' if name.endswith('_us') else ''}".rstrip())
            for name, value in stats.figures.items()
        ),
    )
