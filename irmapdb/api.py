"""Implements the functions of the library. Programs import them from `irmapdb`.

Each function is one step, with the options of the command of the same name. The functions print
nothing, end no process, and read no environment variable. They log below the logger `irmapdb`.

In every function:

- A path is `str`, `bytes` or `os.PathLike`. Paths in results are `bytes`, absolute in the root of
  the root task's mount namespace. `irmapdb.printable` makes text of them.
- `pid` is the root task of a tree, in the caller's pid namespace: it and all its descendants.
- `config` is a TOML file; None: `/etc/irmapdb.toml`, if it exists.
- Every error that is raised on purpose is an `IrmapError`. Here UsageError stands for an argument
  that can never work, ConfigError for a wrong configuration, and TaskError for a root task that
  does not exist or cannot be read.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from irmapdb.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from irmapdb.audit.check import AuditReport
    from irmapdb.audit.findings import AuditVerdict
    from irmapdb.checkpoint.steps import StepOptions
    from irmapdb.checkpoint.transaction import StepReport
    from irmapdb.criu.check.dump import DumpCheck
    from irmapdb.criu.check.restore import RestoreCheck
    from irmapdb.model import CacheEntry
    from irmapdb.store.ask import Ask

__all__ = [
    "AnyPath",
    "audit",
    "check",
    "check_images",
    "dump",
    "open_database",
    "pre_dump",
    "read_cache",
    "write_cache",
]

AnyPath: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]
"""A path as Python's own functions take it."""


def pre_dump(
    pid: int,
    *,
    images_dir: AnyPath = ".",
    work_dir: AnyPath | None = None,
    prev_images_dir: AnyPath | None = None,
    scan_paths: Iterable[AnyPath] = (),
    database: AnyPath | None = None,
    config: AnyPath | None = None,
) -> StepReport:
    """Find and prove the path of every watch of a tree, and write `irmap-cache` and `irmap.db`.

    No task is stopped. `images_dir` is CRIU's `-D` and `work_dir` its `-W` (None: the images dir);
    either is made, mode 0700, if only its last part is missing. `prev_images_dir` has the images
    of the dump before, relative to `images_dir` (None: the link `parent`, if there is one).
    `scan_paths` are scanned first. `database` replaces `irmap.db` in the work dir.

    Returns one row for each watch. A row has `path`, or else None there and the reason in `why`:
    a watch without a path is a result, not an error. Times are in microseconds.

    Raises UsageError, ConfigError, TaskError; FileError for a directory or file that cannot be
    used; ImageError for an `irmap-cache` that irmapdb cannot read; DatabaseError.
    """
    from irmapdb.checkpoint.steps import pre_dump as run
    from irmapdb.checkpoint.work_dir import made_directory

    options = _step_options(
        pid, images_dir, work_dir, prev_images_dir, scan_paths, database, config
    )
    with made_directory(options.images_dir), made_directory(options.work_dir):
        return run(options)


def dump(
    pid: int,
    *,
    images_dir: AnyPath = ".",
    work_dir: AnyPath | None = None,
    prev_images_dir: AnyPath | None = None,
    scan_paths: Iterable[AnyPath] = (),
    freeze_cgroup: AnyPath | None = None,
    timeout_s: float = 10.0,
    leave_stopped: bool = False,
    database: AnyPath | None = None,
    config: AnyPath | None = None,
) -> StepReport:
    """Confirm every path with the tasks frozen, and write `inotify.img` and `fanotify.img` too.

    Does all that `pre_dump` does and takes the same arguments. Then it stops the tasks, reads
    their watches again, and lets them run before it writes. `freeze_cgroup` is a cgroup to freeze
    (None: ptrace alone). `timeout_s` is the time for the tasks to stop, in seconds. With
    `leave_stopped` they stay stopped by SIGSTOP.

    CRIU does not need it: `criu dump` freezes the tasks itself.

    Raises the errors of `pre_dump`, and FreezeError if a task did not stop; then all run again.
    """
    from irmapdb.checkpoint.steps import FreezeOptions
    from irmapdb.checkpoint.steps import dump as run
    from irmapdb.checkpoint.work_dir import made_directory

    if not 0 < timeout_s < math.inf:
        message = f"timeout_s {timeout_s:g}: not a number of seconds"
        raise UsageError(message, advice="give a number above 0")
    options = _step_options(
        pid, images_dir, work_dir, prev_images_dir, scan_paths, database, config
    )
    with made_directory(options.images_dir), made_directory(options.work_dir):
        return run(options, FreezeOptions(_path(freeze_cgroup), timeout_s, leave_stopped))


def check(
    pid: int,
    *,
    images_dir: AnyPath = ".",
    work_dir: AnyPath | None = None,
    prev_images_dir: AnyPath | None = None,
    scan_paths: Iterable[AnyPath] = (),
    force_irmap: bool = False,
    criu_version: str | None = None,
    config: AnyPath | None = None,
) -> DumpCheck:
    """Predict for each watch of a tree whether `criu dump` can dump it.

    Give it the directories and options that CRIU will get: `scan_paths` are its
    `--irmap-scan-path`, `force_irmap` its `--force-irmap`. `criu_version` is written as "4.2"
    (None: `criu --version` is asked; without a CRIU on PATH, 4.2 is assumed).

    Nothing is written, and no task is stopped. `right` in the result is true if every watch and
    mark comes back on the file that it is on now, and `fails` if CRIU ends with an error. Times
    are in microseconds; `path` of a prediction is None where CRIU records none.

    Raises UsageError, ConfigError, TaskError; FileError for a directory that is missing; ImageError
    for an `irmap-cache` that CRIU reads and irmapdb does not.
    """
    from irmapdb.config import load_config
    from irmapdb.criu.check.dump import DumpCheckOptions, check_dump
    from irmapdb.criu.check.version import parse_version

    return check_dump(
        DumpCheckOptions(
            pid=_checked_pid(pid),
            images_dir=_needed(images_dir),
            work_dir=_path(work_dir),
            prev_images_dir=_path(prev_images_dir),
            version=None if criu_version is None else parse_version(criu_version),
            force_irmap=force_irmap,
            scan_paths=tuple(map(os.fsencode, scan_paths)),
            config=load_config(_path(config)),
        )
    )


def check_images(images_dir: AnyPath, *, root: AnyPath | None = None) -> RestoreCheck:
    """Predict for each watch in the images of a dump whether a restore can set it again.

    `images_dir` is an images dir, or the archive of a container engine. `root` is the directory
    that the restore will use as the tasks' root (None: `/`; for an engine's checkpoint the image of
    the container, which is not looked at). Nothing is written. `right` in the result is true if
    every watch comes back. `path` of a watch is None where the dump recorded none.

    Raises FileError for a directory or file that cannot be read, or in which no dump lies;
    ImageError for an image or archive that is damaged.
    """
    from irmapdb.criu.check.restore import check_images as run

    return run(_needed(images_dir), _path(root))


def audit(
    work_dir: AnyPath = ".",
    *,
    database: AnyPath | None = None,
    pid: int | None = None,
    root: AnyPath | None = None,
    paths: Iterable[AnyPath] = (),
    kdevs: Iterable[int] = (),
    unproved_since: datetime | None = None,
    verdicts: Iterable[AuditVerdict] = (),
    search: bool = False,
    config: AnyPath | None = None,
) -> AuditReport:
    """Check stored mappings against the filesystem as it is now. Nothing is written.

    The database is `irmap.db` in `work_dir`, or `database`. The paths start at the root of the
    task `pid`, or at the directory `root`, or at our own root if both are None.

    Each of these narrows the selection; empty or None: it does not. `paths` are shell patterns, in
    which `*` matches `/` too; `kdevs` are the kernel's device numbers (major << 20 | minor);
    `unproved_since` is a time with a time zone: mappings that were proved then or later are left
    out. `verdicts` restricts `shown` in the result; `findings` has all. With `search`, the
    filesystem is scanned for files whose new path no other source knows.

    `evidence` of a finding is None for a mapping that holds.

    Raises UsageError, ConfigError, TaskError; FileError for a root that cannot be opened;
    DatabaseError for a file that is no database of irmapdb or has an older schema.
    """
    from irmapdb.audit.check import AuditOptions
    from irmapdb.audit.check import audit as run
    from irmapdb.audit.findings import Selection
    from irmapdb.checkpoint.work_dir import DATABASE_NAME
    from irmapdb.config import load_config

    if unproved_since is not None and unproved_since.tzinfo is None:
        message = f"unproved_since {unproved_since}: a time without a time zone"
        raise UsageError(message, advice="give one, as datetime.now(UTC) has")
    return run(
        AuditOptions(
            database=_path(database) or _needed(work_dir) / DATABASE_NAME,
            root=None if root is None else os.fsencode(root),
            pid=None if pid is None else _checked_pid(pid),
            select=Selection(
                paths=tuple(map(os.fsencode, paths)),
                kdevs=frozenset(kdevs),
                unproved_since=unproved_since,
                verdicts=frozenset(verdicts),
            ),
            search=search,
            config=load_config(_path(config)),
        )
    )


def open_database(path: AnyPath, *, wait_s: float = 10.0) -> Ask:
    """Open an `irmap.db` for questions in SQL: a context manager, for one thread.

    Nothing is ever changed, also while another process writes. `ask(text, values)` of the result
    gives one answer for each statement: `columns`, and `rows` of `str`, `bytes` (paths), `int`,
    `float` or None. The tables and views are those of docs/sql.md. `wait_s` is the longest wait
    for another process, in seconds.

    Raises DatabaseError for a file that is no database of irmapdb, or has an older schema; `ask`
    raises SqlError for a statement that SQLite does not understand or that does more than read.
    """
    from irmapdb.model import printable
    from irmapdb.store.ask import Ask

    return Ask.open(_needed(path), path_text=printable, wait_s=wait_s)


def read_cache(path: AnyPath) -> tuple[CacheEntry, ...]:
    """The entries of an `irmap-cache`, in its order: of one inode, CRIU tries the last first.

    They are as in the file: nothing is looked up or proved. Raises FileError for a file that
    cannot be read, and ImageError for one that CRIU did not write like this.
    """
    from irmapdb import files
    from irmapdb.image.cache import decode_cache
    from irmapdb.model import printable

    source = _needed(path)
    return decode_cache(files.read_whole(source, limit_bytes=files.LIMIT_BYTES), printable(source))


def write_cache(path: AnyPath, entries: Iterable[CacheEntry]) -> None:
    """Write an `irmap-cache` with these entries, in their order; the file is replaced whole.

    Raises ImageError for a device that is not u32 or an inode number that is not u64, and
    FileError for a file that cannot be written; the old file then stays as it is.
    """
    from irmapdb import files
    from irmapdb.image.cache import encode_cache

    files.replace_whole(_needed(path), encode_cache(entries))


def _step_options(
    pid: int,
    images_dir: AnyPath,
    work_dir: AnyPath | None,
    prev_images_dir: AnyPath | None,
    scan_paths: Iterable[AnyPath],
    database: AnyPath | None,
    config: AnyPath | None,
) -> StepOptions:
    from irmapdb.checkpoint.steps import StepOptions
    from irmapdb.config import load_config

    return StepOptions(
        pid=_checked_pid(pid),
        images_dir=_needed(images_dir),
        work_dir=_path(work_dir),
        database=_path(database),
        prev_images_dir=_path(prev_images_dir),
        scan_paths=tuple(map(os.fsencode, scan_paths)),
        config=load_config(_path(config)),
    )


def _checked_pid(pid: int) -> int:
    if pid <= 0:
        message = f"pid {pid}: not a process id"
        raise UsageError(message, advice="give the pid of the tree's root task, as you see it")
    return pid


def _needed(path: AnyPath) -> Path:
    return Path(os.fsdecode(path))


def _path(path: AnyPath | None) -> Path | None:
    return None if path is None else _needed(path)
