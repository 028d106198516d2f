"""Three watches in a container on an overlay: CRIU alone fails on them.

`/srv/app/settings` is a file of the image, `/srv/state` one of the upper layer. CRIU has the root
as `/.`; it would not find it by the name `/`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.notify import IN_CREATE, IN_OPEN

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.watcher import Task, Watched

__all__ = ["PATHS", "add_watches", "assert_all_hear"]

PATHS = {"/srv/app/settings", "/.", "/srv/state"}
"""The paths that a dump with irmapdb has."""


def add_watches(task: Task, rootfs: Path) -> list[tuple[Watched, Callable[[Path], object]]]:
    """[(a watch, a function that causes its event)], each watch on its own instance."""
    (rootfs / "srv" / "state").write_text("upper")

    def watch(path: str, mask: int) -> Watched:
        return task.add_inotify(path, mask, fd=task.inotify())

    return [
        (
            watch("/srv/app/settings", IN_OPEN),
            lambda root: (root / "srv/app/settings").read_bytes(),
        ),
        (watch("/", IN_CREATE), lambda root: (root / "new").touch()),
        (watch("/srv/state", IN_OPEN), lambda root: (root / "srv/state").read_bytes()),
    ]


def assert_all_hear(
    task: Task, rootfs: Path, watches: list[tuple[Watched, Callable[[Path], object]]]
) -> None:
    """Every watch gets its event; `rootfs` is mounted anew by a restore."""
    for watched, act in watches:
        (rootfs / "new").unlink(missing_ok=True)
        assert task.hears(watched, lambda act=act: act(rootfs))
