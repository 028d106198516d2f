"""Audits every stored mapping against the present filesystem. It only reads.

`audit` reads the database and writes nothing. It looks each path up in the root that the path
starts at (irmapdb.audit.root_audit). irmapdb.audit.fix does the same, and then writes.
"""

from __future__ import annotations

import contextlib
import os
import time
from itertools import islice

from irmapdb.audit.findings import AuditFinding, AuditVerdict, Evidence, Selection
from irmapdb.audit.root_audit import RootAudit
from irmapdb.config import Config
from irmapdb.errors import DatabaseError, TaskError, UsageError
from irmapdb.kernel.directory import open_directory_root
from irmapdb.kernel.proc import mountinfo, tasks
from irmapdb.kernel.proc.namespaces import open_namespace
from irmapdb.kernel.root import Root, adopt_from, open_root
from irmapdb.model import printable
from irmapdb.record import Record
from irmapdb.resolve.scan import Scan
from irmapdb.store.database import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from irmapdb.model import Identity, Mapping, StaleReason

__all__ = ["Audit", "AuditOptions", "AuditReport", "audit", "open_audit"]

_MOST_MAPPINGS = 1_000_000
"""The largest number of mappings: all are in memory, with their findings."""


class AuditOptions(Record):
    """The options of the audit."""

    database: Path
    root: bytes | None = None
    """A directory that the paths start at; None: our own root, or that of `pid`."""
    pid: int | None = None
    """A task: the paths start at its root, in its mount namespace. Paths of other namespaces of its
    descendants are looked up in those namespaces."""
    select: Selection = Selection()
    search: bool = False
    """Whether to scan for inodes without a known path."""
    config: Config = Config()
    on_checked: Callable[[int, int], None] = lambda _done, _all: None
    """Called with the number of checked mappings, and the number of all."""
    on_scanned: Callable[[int, bytes], None] = lambda _scanned, _top: None
    """Called during a scan with the number of compared entries, and the place."""
    wait_s: float = 10.0
    """The longest wait for another process's step in the database."""


class AuditReport(Record):
    """The result, in the order of the mappings' ids."""

    findings: tuple[AuditFinding, ...]
    """The findings of all checked mappings."""
    shown: tuple[AuditFinding, ...]
    """The findings with a wanted verdict."""
    stored: int
    """The number of mappings, checked or not."""
    left_out: int
    """The number of selected mappings in mount namespaces that have no task of the named tree."""
    root: str
    """The root of the lookups, for people."""
    scanned: int
    took_us: int
    private_copy: str = ""
    """Why SQLite worked on a private copy of the database; "" if it did not."""

    @property
    def lost(self) -> int:
        """The number of live mappings that are wrong."""
        return sum(one.is_news for one in self.findings) - self.unseen

    @property
    def unseen(self) -> int:
        """The number of live mappings that could not be checked."""
        return sum(one.is_news and one.verdict is AuditVerdict.UNREACHABLE for one in self.findings)


def audit(options: AuditOptions) -> AuditReport:
    """Check every selected mapping. Nothing is written."""
    with open_audit(options) as auditing:
        return auditing.report()


@contextlib.contextmanager
def open_audit(options: AuditOptions) -> Iterator[Audit]:
    """The same step by step, for a caller that uses the roots afterwards; they stay open."""
    if options.root is not None and options.pid is not None:
        raise UsageError("a directory and a task each name a root", advice="give one of them")
    with _open_root(options) as root, contextlib.ExitStack() as opened:
        yield Audit(root, options, opened)


def _open_root(options: AuditOptions) -> Root:
    if options.root is not None:
        return open_directory_root(options.root)
    return open_root(os.getpid() if options.pid is None else options.pid)


class Audit:
    """Divides the stored mappings by the root of their paths, and audits each part there.

    `opened` closes the roots of other mount namespaces.
    """

    def __init__(self, root: Root, options: AuditOptions, opened: contextlib.ExitStack) -> None:
        self._root = root
        self._options = options
        self._opened = opened
        self._audits: dict[int, RootAudit] = {}  # by the mount namespace of the mappings
        self._checked = self._to_check = 0

    def report(self) -> AuditReport:
        """Read the database, check the mappings, and return the result."""
        start = time.monotonic_ns()
        options = self._options
        with Store.open_readonly(options.database, wait_s=options.wait_s) as store:
            rows = list(islice(store.all_mappings(), _MOST_MAPPINGS + 1))
            private_copy = store.why_copied
        if len(rows) > _MOST_MAPPINGS:
            raise DatabaseError(
                printable(os.fsencode(options.database)),
                f"has more than {_MOST_MAPPINGS:,} mappings",
                advice="delete old ones with `irmapdb prune`, or move the file away: it is only a "
                "cache",
            )
        self._open_audits(rows)
        wanted = [row for row in rows if options.select.takes(row)]
        self._to_check = len(wanted)
        parts: dict[RootAudit, list[Mapping]] = {}
        for row in wanted:
            if row.mntns in self._audits:
                parts.setdefault(self._audits[row.mntns], []).append(row)
        foreign = [row for row in wanted if row.mntns not in self._audits]
        findings = [finding for one, part in parts.items() for finding in one.findings(part)]
        if options.pid is None:  # the user has named a tree, and wants only that
            findings += map(_foreign, foreign)
        findings.sort(key=lambda finding: finding.mapping.id or 0)
        return AuditReport(
            findings=tuple(findings),
            shown=tuple(filter(options.select.shows, findings)),
            stored=len(rows),
            left_out=0 if options.pid is None else len(foreign),
            root=self._name(),
            scanned=sum(one.scanned for one in self._each()),
            took_us=(time.monotonic_ns() - start) // 1000,
            private_copy=private_copy,
        )

    def disproofs(
        self, mntns: int, wanted: Sequence[tuple[Identity, bytes]]
    ) -> dict[tuple[Identity, bytes], StaleReason | None]:
        """Why each path of a mount namespace is not its inode; None if it is.

        The namespace is that of a mapping that was reported. UNREACHABLE if there was no answer.
        """
        return self._audits[mntns].disproofs(wanted)

    def _open_audits(self, rows: Sequence[Mapping]) -> None:
        by_mntns: dict[int, list[Mapping]] = {}
        for row in rows:
            by_mntns.setdefault(row.mntns, []).append(row)
        # Rows of the root task's namespace have mntns 0. If the database knows the namespace of
        # the task that was named as a nested one, the rows with mntns 0 are of another namespace.
        own = {0, self._root.mntns}
        if self._options.pid is not None and self._root.mntns in by_mntns:
            own = {self._root.mntns}
        mine = [row for row in rows if row.mntns in own]
        self._root.adopt(self._options.config)
        self._audits = dict.fromkeys(
            own, self._audit_in(self._root, _root_name(self._options), mine)
        )
        for root in self._open_nested(by_mntns.keys() - own - {0}):
            name = f"the root of mount namespace {root.mntns}"
            adopt_from(root, self._root)
            self._audits[root.mntns] = self._audit_in(root, name, by_mntns[root.mntns])

    def _open_nested(self, missing: set[int]) -> Iterator[Root]:
        # Paths of a namespace start at its own root; or, if all of its tasks are in chroots, at
        # one that no row names: those are left out.
        if self._options.pid is None:
            return
        for task in tasks.task_tree(self._options.pid) if missing else ():
            with contextlib.suppress(OSError, TaskError):  # it has ended, or we may not see it
                mntns = mountinfo.mount_namespace(task.pid)
                root = open_namespace(mntns) if mntns in missing else None
                if root is not None:
                    missing.remove(mntns)
                    yield self._opened.enter_context(root)

    def _audit_in(self, root: Root, name: str, rows: Sequence[Mapping]) -> RootAudit:
        options = self._options
        scan = Scan(root, options.config, progress=options.on_scanned) if options.search else None
        return RootAudit(root, rows, name=name, scan=scan, on_checked=self._count)

    def _count(self, more: int) -> None:
        self._checked += more
        self._options.on_checked(self._checked, self._to_check)

    def _each(self) -> set[RootAudit]:
        return set(self._audits.values())

    def _name(self) -> str:
        name, others = _root_name(self._options), len(self._each()) - 1
        if not others:
            return name
        return f"{name} and {f'{others} other mount namespaces' if others > 1 else 'another'}"


def _root_name(options: AuditOptions) -> str:
    if options.root is not None:
        return printable(options.root)
    return "our own root" if options.pid is None else f"the root of process {options.pid}"


def _foreign(mapping: Mapping) -> AuditFinding:
    note = f"of mount namespace {mapping.mntns}: name one of its tasks"
    if not mapping.mntns:
        note = "of the root task's mount namespace: name that task with -t"
    evidence = Evidence(unseen="the path starts at another root", note=note)
    return AuditFinding(mapping, AuditVerdict.UNREACHABLE, evidence)
