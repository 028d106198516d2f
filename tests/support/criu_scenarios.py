"""Uses of inotify and fanotify that are hard to dump: the subjects of CRIU's own tests.

Each is a generator: the part before the first `yield` sets the task up, the part after it runs in
the restored task and yields the reported events.

The subjects are those of inotify00, 01, 02, 04, inotify_irmap, inotify_system and fanotify00 in
CRIU's test/zdtm/static, and their relatives.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from irmapdb.checkpoint import steps
from tests.support.notify import (
    FAN_MODIFY,
    FAN_ONDIR,
    FAN_OPEN,
    FAN_REPORT_FID,
    IN_ATTRIB,
    IN_CLOSE_WRITE,
    IN_CREATE,
    IN_DELETE,
    IN_DONT_FOLLOW,
    IN_OPEN,
    InotifyEvent,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.criu_task import Scene
    from tests.support.watcher import Task, Watched

    Scenario = Callable[[Scene], Iterator[dict[str, bool]]]

__all__ = ["SCENARIOS"]

_IN_ALL = 0xFFF
_FAN_CLASS_CONTENT = 0x04
_FAN_OPEN_PERM = 0x10000
_FAN_UNLIMITED_QUEUE = 0x10
_FAN_REPORT_MNT = 0x4000
_FAN_MNT_ATTACH = 0x01000000
_FAN_MARK_ADD = 0x01
_FAN_MARK_IGNORED_MASK = 0x20
_FAN_MARK_IGNORED_SURV_MODIFY = 0x40
_FAN_ACCESS = 0x01


def _masks(task: Task) -> dict[int, int]:
    """The events of the task since the last look: wd → all bits."""
    found: dict[int, int] = {}
    for event in task.events():
        if isinstance(event, InotifyEvent):
            found[event.wd] = found.get(event.wd, 0) | event.mask
    return found


def _touch(path: Path) -> None:
    """Open a file, or look into a directory."""
    if path.is_dir():
        os.listdir(path)
    else:
        path.read_bytes()


def deleted_file(criu_view: Scene) -> Iterator[dict[str, bool]]:
    """A file is watched, held open and deleted, and so is its directory; then a new one comes."""
    criu_view.dump_options += ["--link-remap"]
    task, mask = criu_view.task, IN_DELETE | IN_CLOSE_WRITE | IN_CREATE
    held = task.open(criu_view.path("file"), os.O_RDWR)
    directory = task.add_inotify(criu_view.base, mask)
    file = task.add_inotify(criu_view.path("file"), mask)
    task.unlink(criu_view.path("file"))
    assert _masks(task)[directory.wd] & IN_DELETE
    yield {}
    _masks(task)
    task.close_fd(held)
    closed = _masks(task)
    task.write(criu_view.path("file"))
    made = _masks(task)
    yield {
        "closed": any(one & IN_CLOSE_WRITE for one in closed.values()),
        "closed, by the file": bool(closed.get(file.wd, 0) & IN_CLOSE_WRITE),
        "created": bool(made.get(directory.wd, 0) & IN_CREATE),
    }


def one_of_two_names(criu_view: Scene) -> Iterator[dict[str, bool]]:
    """A file has two names; it was watched by the one that is gone."""
    task = criu_view.task
    (criu_view.directory / "second").hardlink_to(criu_view.directory / "file")
    watched = task.add_inotify(criu_view.path("file"), IN_OPEN)
    task.unlink(criu_view.path("file"))
    yield {}
    yield {"opened": task.hears(watched, (criu_view.directory / "second").read_bytes)}


def removed_directory(criu_view: Scene) -> Iterator[dict[str, bool]]:
    """A directory is watched, held open and removed; so is a file in its parent, which stays."""
    criu_view.dump_options += ["--link-remap"]
    task = criu_view.task
    task.open(criu_view.path("going/below"), os.O_RDONLY | os.O_DIRECTORY)
    task.add_inotify(criu_view.path("going/below"), IN_CREATE)
    parent = task.add_inotify(criu_view.path("going"), IN_CREATE | IN_DELETE)
    task.unlink(criu_view.path("going/below"))
    assert _masks(task)[parent.wd] & IN_DELETE
    yield {}
    yield {
        "both watches": _count(task, parent.fd) == 2,
        "created": task.hears(parent, (criu_view.directory / "going" / "new").touch),
    }


def child_namespace(criu_view: Scene) -> Iterator[dict[str, bool]]:
    """A child has a mount namespace with a tmpfs of its own, which the parent watches."""
    task = criu_view.task
    child = task.fork()
    child.unshare_mounts()
    child.mount("tmpfs", criu_view.path("mountpoint"), "tmpfs")
    held = child.open(criu_view.path("mountpoint"), os.O_RDONLY | os.O_DIRECTORY)
    way = f"/proc/{child.pid}/fd/{held}"
    child.write(criu_view.path("mountpoint/file"))
    watched = task.add_inotify(way, IN_CREATE, fd=task.inotify())
    file = task.add_inotify(f"{way}/file", IN_CLOSE_WRITE, fd=task.inotify())
    yield {}
    yield {
        "created": task.hears(watched, lambda: child.write(criu_view.path("mountpoint/new"))),
        "written": task.hears(file, lambda: child.write(criu_view.path("mountpoint/file"))),
    }


def many_directories(criu_view: Scene) -> Iterator[dict[str, bool]]:
    """64 directories on one instance; all of them come back with their numbers."""
    names = sorted(os.listdir(criu_view.directory / "dirs"))
    watches = {
        name: criu_view.task.add_inotify(criu_view.path(f"dirs/{name}"), IN_CREATE)
        for name in names
    }
    yield {}
    yield {
        "all": all(
            criu_view.task.hears(watched, (criu_view.directory / "dirs" / name / "new").touch)
            for name, watched in watches.items()
        )
    }


def nothing_queued_by_us(criu_view: Scene) -> Iterator[dict[str, bool]]:
    """Two instances watch one file for everything: neither a dump nor a restore is an event."""
    task = criu_view.task
    first = task.add_inotify(criu_view.path("file"), _IN_ALL, fd=task.inotify())
    second = task.add_inotify(criu_view.path("file"), _IN_ALL, fd=task.inotify())
    directory = task.add_inotify(criu_view.base, _IN_ALL, fd=task.inotify())
    yield {}
    quiet = task.events() == []
    (criu_view.directory / "file").read_bytes()
    heard = {(event.fd, event.wd) for event in task.events() if isinstance(event, InotifyEvent)}
    watches = (first, second, directory)
    yield {"quiet": quiet, "opened": heard == {(one.fd, one.wd) for one in watches}}


def queued_events(criu_view: Scene) -> Iterator[dict[str, bool]]:
    """Events wait in the queue when the dump comes. CRIU drops them; the watches stay."""
    task = criu_view.task
    watched = task.add_inotify(criu_view.base, IN_CREATE | IN_OPEN)
    file = task.add_inotify(criu_view.path("file"), IN_OPEN)
    (criu_view.directory / "before").touch()
    (criu_view.directory / "file").read_bytes()
    yield {}
    kept = task.events()
    yield {
        "kept": bool(kept),
        "created": task.hears(watched, lambda: os.mkdir(criu_view.directory / "after")),
        "opened": bool(
            _heard_opening(task, criu_view.directory / "file").get(file.wd, 0) & IN_OPEN
        ),
    }


def _heard_opening(task: Task, path: Path) -> dict[int, int]:
    task.events()
    path.read_bytes()
    return _masks(task)


def swapped_names(criu_view: Scene) -> Iterator[dict[str, bool]]:
    """Two files swap names between two pre-dumps and again before the dump; no handle opens."""
    task = criu_view.task
    criu_view.env["CRIU_FAULT"] = "128"
    criu_view.force_irmap = True
    one = task.add_inotify(criu_view.path("one"), IN_OPEN)
    two = task.add_inotify(criu_view.path("two"), IN_OPEN)
    criu_view.dump_options += ["--irmap-scan-path", os.fsdecode(criu_view.base)]

    def swap() -> None:
        task.rename(criu_view.path("one"), criu_view.path("tmp"))
        task.rename(criu_view.path("two"), criu_view.path("one"))
        task.rename(criu_view.path("tmp"), criu_view.path("two"))

    for _ in range(2):
        criu_view.images.mkdir(exist_ok=True)
        steps.pre_dump(steps.StepOptions(task.pid, images_dir=criu_view.images))
        swap()
    yield {}
    yield {
        "one": task.hears(one, (criu_view.directory / "one").read_bytes),
        "two": task.hears(two, (criu_view.directory / "two").read_bytes),
    }


def symbolic_link(criu_view: Scene) -> Iterator[dict[str, bool]]:
    """A symbolic link itself is watched, and its target."""
    task = criu_view.task
    link = task.add_inotify(criu_view.path("link"), IN_ATTRIB | IN_DONT_FOLLOW, fd=task.inotify())
    file = task.add_inotify(criu_view.path("other"), IN_OPEN, fd=task.inotify())
    yield {}
    path = os.fsencode(criu_view.directory / "link")
    yield {
        "file": task.hears(file, (criu_view.directory / "other").read_bytes),
        "link": task.hears(link, lambda: os.utime(path, follow_symlinks=False)),
    }


def fanotify_inodes(criu_view: Scene) -> Iterator[dict[str, bool]]:
    """Inode marks on a file and on a directory, in two groups, with an ignored mask."""
    task = criu_view.task
    fd = task.fanotify(flags=_FAN_UNLIMITED_QUEUE)
    file = task.add_fanotify(criu_view.path("file"), FAN_OPEN, fd=fd)
    _ignore(task, criu_view.path("file"), fd)
    directory = task.add_fanotify(
        criu_view.path("dirs/00"), FAN_OPEN | FAN_ONDIR, fd=task.fanotify()
    )
    before = _marks(task, fd)
    yield {}
    yield {
        "file": _is_heard(task, file, criu_view.directory / "file"),
        "directory": _is_heard(task, directory, criu_view.directory / "dirs" / "00"),
        "as it was": _marks(task, fd) == before,
    }


def fanotify_mount(criu_view: Scene) -> Iterator[dict[str, bool]]:
    """A mark on a mount, and an ignored mask that outlives a write."""
    task = criu_view.task
    fd = task.fanotify()
    mark = task.add_fanotify(criu_view.base, FAN_OPEN | FAN_ONDIR, "mount", fd=fd)
    _ignore(task, criu_view.base, fd, "mount")
    yield {}
    # Of its own mount: a task in another namespace opens through another one.
    yield {"opened": task.hears_any(mark.fd, lambda: task.open(criu_view.path("file")))}


def fanotify_by_name(criu_view: Scene) -> Iterator[dict[str, bool]]:
    """A group whose events carry handles in place of descriptors (FAN_REPORT_FID)."""
    task = criu_view.task
    fd = task.fanotify(flags=FAN_REPORT_FID)
    task.add_fanotify(criu_view.path("dirs/00"), IN_CREATE | FAN_ONDIR, fd=fd)
    yield {}
    yield {"created": task.hears_any(fd, (criu_view.directory / "dirs" / "00" / "new").touch)}


def fanotify_filesystem(criu_view: Scene) -> Iterator[dict[str, bool]]:
    """A mark on a filesystem, beside one on an inode."""
    task = criu_view.task
    fd = task.fanotify()
    task.add_fanotify(criu_view.base, FAN_OPEN, "filesystem", fd=fd)
    file = task.add_fanotify(criu_view.path("file"), FAN_OPEN, fd=task.fanotify())
    yield {}
    yield {
        "file": _is_heard(task, file, criu_view.directory / "file"),
        "filesystem": task.hears_any(fd, (criu_view.directory / "other").read_bytes),
    }


def fanotify_namespace(criu_view: Scene) -> Iterator[dict[str, bool]]:
    """A mark on a mount namespace (Linux 6.15), beside one on an inode."""
    task = criu_view.task
    fd = task.fanotify(flags=_FAN_REPORT_MNT)
    task.add_fanotify("/proc/self/ns/mnt", _FAN_MNT_ATTACH, "mntns", fd=fd)
    file = task.add_fanotify(criu_view.path("file"), FAN_OPEN, fd=task.fanotify())
    before = _marks(task, fd)
    yield {}
    yield {
        "file": _is_heard(task, file, criu_view.directory / "file"),
        "namespace": len(_marks(task, fd)) == len(before),
    }


def fanotify_permission(criu_view: Scene) -> Iterator[dict[str, bool]]:
    """A group that is asked before a file is opened, which no process does meanwhile."""
    task = criu_view.task
    fd = task.fanotify(flags=_FAN_CLASS_CONTENT)
    task.add_fanotify(criu_view.path("file"), _FAN_OPEN_PERM, fd=fd)
    before = _marks(task, fd)
    yield {}
    yield {"as it was": _marks(task, fd) == before and task.events() == []}


def _count(task: Task, fd: int) -> int:
    with open(f"/proc/{task.pid}/fdinfo/{fd}", encoding="ascii") as file:
        return sum(line.startswith("inotify ") for line in file)


def _ignore(task: Task, path: bytes, fd: int, kind: str = "inode") -> None:
    flags = _FAN_MARK_ADD | _FAN_MARK_IGNORED_MASK | _FAN_MARK_IGNORED_SURV_MODIFY
    task.add_fanotify(path, _FAN_ACCESS | FAN_MODIFY, kind, fd=fd, flags=flags)


def _marks(task: Task, fd: int) -> list[str]:
    """The lines of the group's marks in fdinfo, without the number of a mount."""
    with open(f"/proc/{task.pid}/fdinfo/{fd}", encoding="ascii") as file:
        return [line for line in file if line.startswith("fanotify ")]


def _is_heard(task: Task, watched: Watched, path: Path) -> bool:
    return task.hears_any(watched.fd, lambda: _touch(path))


SCENARIOS: dict[str, Scenario] = {
    scenario.__name__: scenario
    for scenario in (
        deleted_file,
        one_of_two_names,
        removed_directory,
        child_namespace,
        many_directories,
        nothing_queued_by_us,
        queued_events,
        swapped_names,
        symbolic_link,
        fanotify_inodes,
        fanotify_mount,
        fanotify_by_name,
        fanotify_filesystem,
        fanotify_namespace,
        fanotify_permission,
    )
}
