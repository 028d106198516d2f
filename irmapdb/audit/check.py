"""Every stored mapping beside the filesystem as it is now: what holds, and where the rest went.

`audit` reads the database and writes nothing. `fix` is the same and then marks stale what does not
hold, stores where it was found, and logs both as a run of its own; each is proved again before.

A verdict comes from three questions. Is the inode at its path (the proof of irmapdb.kernel.
identity)? Who knows another path of it (its handle, the filesystem, other rows, a scan)? Does the
filesystem still know it at all (irmapdb.kernel.fs.inode_state)?
"""

from __future__ import annotations

import contextlib
import enum
import errno
import fnmatch
import os
import time
from datetime import UTC, datetime

from irmapdb.config import Config
from irmapdb.errors import TaskError, UsageError
from irmapdb.kernel.child_call import ask_in_child
from irmapdb.kernel.directory import open_directory_root
from irmapdb.kernel.fs.inode_state import InodeState, fates
from irmapdb.kernel.identity import disproof, identify_fd
from irmapdb.kernel.proc import mountinfo, tasks
from irmapdb.kernel.proc.namespaces import open_namespace
from irmapdb.kernel.root import Root, open_root
from irmapdb.model import StaleReason, format_kdev, printable
from irmapdb.record import Record
from irmapdb.resolve import engine
from irmapdb.resolve.btrfs import BtrfsLookup
from irmapdb.resolve.handle import Handles
from irmapdb.resolve.scan import Scan
from irmapdb.resolve.stored import StoredRows
from irmapdb.resolve.xfs import XfsParents
from irmapdb.store.database import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from pathlib import Path

    from irmapdb.model import FileHandle, Identity, InodeKey, Mapping, Source
    from irmapdb.resolve.engine import Resolution

__all__ = [
    "Audit",
    "AuditFinding",
    "AuditOptions",
    "AuditReport",
    "AuditVerdict",
    "Evidence",
    "Selection",
    "audit",
    "open_audit",
]

_PATIENCE_S = 5.0
"""How long so many mappings may take where a filesystem's answers come from somebody else."""
_MAPPINGS_ASIDE = 1000
_TICK = 512


class AuditVerdict(enum.StrEnum):
    """What a mapping is worth now. Their order is that of the tables."""

    VALID = "valid"
    """The path names the inode."""
    MOVED = "moved"
    """It does not; but the inode is there, under another name."""
    REPLACED = "replaced"
    """The path names another inode, or leads through a symbolic link; nobody knows the old one in
    this root."""
    REUSED = "reused"
    """The path names another inode that was given the same number: the handle tells."""
    DELETED = "deleted"
    """Nothing is at the path, and the inode has no name left or is no more."""
    GONE = "gone"
    """Nothing is at the path, and nobody can say what became of the inode."""
    UNMOUNTED = "unmounted"
    """The device is not mounted in this root, or hidden there, or not at the path any more."""
    UNREACHABLE = "unreachable"
    """We may not look, or had no answer, or the path belongs to another mount namespace."""


class Evidence(Record):
    """Why a mapping does not hold."""

    reason: StaleReason | None = None
    """What the proof says of the path; None where nobody could look."""
    found: Identity | None = None
    """What is at the path now."""
    changed_at: datetime | None = None
    """When that last changed (st_ctime); where nothing is there, when a name last came or went in
    the nearest directory that is (st_mtime)."""
    moved_to: tuple[bytes, ...] = ()
    """Proved paths of the inode, the best one first. May be empty for `moved`: its name is not
    known then."""
    source: Source | None = None
    """Who knew where to."""
    unseen: str = ""
    """Why nobody could look at what is at the path; empty where somebody did."""
    note: str = ""


class _Sight(Record):
    """What a look at a path came to: an inode and its status, nothing, or why neither."""

    found: Identity | None = None
    status: os.stat_result | None = None
    unseen: str = ""


class AuditFinding(Record):
    """A mapping as it is stored, and what it is worth."""

    mapping: Mapping
    verdict: AuditVerdict
    evidence: Evidence | None = None
    """None for `valid`."""

    @property
    def by_number(self) -> bool:
        """Whether there was no handle to compare, only device and inode number."""
        return self.mapping.identity.handle is None

    @property
    def is_news(self) -> bool:
        """Whether the database takes it for true, and it is not, or nobody knows."""
        return self.verdict is not AuditVerdict.VALID and not self.mapping.stale


class Selection(Record):
    """Which mappings are of interest; the default is all of them."""

    paths: tuple[bytes, ...] = ()
    """Shell patterns, of which one has to match; `*` matches `/` too."""
    kdevs: frozenset[int] = frozenset()
    unproved_since: datetime | None = None
    """Those that were not proved at this time or later."""
    verdicts: frozenset[AuditVerdict] = frozenset()

    def takes(self, mapping: Mapping) -> bool:
        """Whether a mapping is to be checked."""
        if self.kdevs and mapping.identity.kdev not in self.kdevs:
            return False
        if self.unproved_since is not None:
            proved = mapping.validated_at
            if proved is not None and proved >= self.unproved_since:
                return False
        path = mapping.path
        return not self.paths or any(fnmatch.fnmatchcase(path, one) for one in self.paths)

    def shows(self, finding: AuditFinding) -> bool:
        """Whether what came out is to be told."""
        return not self.verdicts or finding.verdict in self.verdicts


class AuditOptions(Record):
    """What the audit is told."""

    database: Path
    root: bytes | None = None
    """A directory that the paths start at; None: our own root, or that of `pid`."""
    pid: int | None = None
    """A task whose root the paths start at, and whose mount namespace they are of; what is stored
    of other namespaces that its descendants are in is looked up there."""
    select: Selection = Selection()
    search: bool = False
    """Whether to scan for what nobody knows a path of."""
    config: Config = Config()
    on_checked: Callable[[int, int], None] = lambda _done, _all: None
    """Told how many mappings were checked, of how many."""
    on_scanned: Callable[[int, bytes], None] = lambda _scanned, _top: None
    """Told during a scan: entries looked at so far, and where."""
    wait_s: float = 10.0
    """How long to wait for another process's step in the database."""


class AuditReport(Record):
    """What came out, by the ids of the mappings."""

    findings: tuple[AuditFinding, ...]
    """Of all that were checked."""
    shown: tuple[AuditFinding, ...]
    """Those of them whose verdict was asked for."""
    stored: int
    """How many mappings there are, checked or not."""
    left_out: int
    """How many of those that were selected are of mount namespaces that no task of the tree that
    was named is in."""
    root: str
    """Where the paths were looked up, for people."""
    scanned: int
    took_us: int
    private_copy: str = ""
    """Why SQLite worked on a private copy of the database; "" where it did not."""

    @property
    def lost(self) -> int:
        """How many mappings the database takes for true that do not hold."""
        return sum(one.is_news for one in self.findings) - self.unseen

    @property
    def unseen(self) -> int:
        """How many it takes for true that could not be looked at."""
        return sum(one.is_news and one.verdict is AuditVerdict.UNREACHABLE for one in self.findings)


def audit(options: AuditOptions) -> AuditReport:
    """Check every selected mapping. Nothing is written."""
    with open_audit(options) as auditing:
        return auditing.report()


@contextlib.contextmanager
def open_audit(options: AuditOptions) -> Iterator[Audit]:
    """The same step by step, for who does something with it; holds the root open."""
    if options.root is not None and options.pid is not None:
        message = "a directory and a task each name a root"
        raise UsageError(message, advice="give one of them")
    with _open_root(options) as root, contextlib.ExitStack() as opened:
        root.adopt(options.config)
        yield Audit(root, options, opened)


def _open_root(options: AuditOptions) -> Root:
    if options.root is not None:
        return open_directory_root(options.root)
    return open_root(os.getpid() if options.pid is None else options.pid)


class Audit:
    """One audit: its root, and the rows as they are stored. `opened` closes what it opens."""

    def __init__(self, root: Root, options: AuditOptions, opened: contextlib.ExitStack) -> None:
        self.root = root
        self.options = options
        self.scan = Scan(root, options.config, progress=options.on_scanned)
        self.nested: dict[int, Audit] = {}
        """The same of other mount namespaces of the tree, each in its own root."""
        self._opened = opened
        self._rows: list[Mapping] = []
        self._namespaces: set[int] = set()
        self._name = _root_name(options)
        self._left_out = 0
        self._done = self._total = 0

    def report(self) -> AuditReport:
        """Read the database, check, and say what came out."""
        start = time.monotonic_ns()
        with Store.open_readonly(self.options.database, wait_s=self.options.wait_s) as store:
            self._rows = list(store.all_mappings())
            private_copy = store.why_copied
        self._namespaces = self._own_namespaces()
        self._open_nested()
        select = self.options.select
        findings = self._judge([row for row in self._rows if select.takes(row)])
        findings.sort(key=lambda finding: finding.mapping.id or 0)
        return AuditReport(
            findings=tuple(findings),
            shown=tuple(filter(select.shows, findings)),
            stored=len(self._rows),
            left_out=self._left_out,
            root=self._roots_name(),
            scanned=sum(one.scan.scanned for one in (self, *self.nested.values())),
            took_us=(time.monotonic_ns() - start) // 1000,
            private_copy=private_copy,
        )

    def of(self, mntns: int) -> Audit:
        """Who looks paths of a mount namespace up."""
        return self.nested.get(mntns, self)

    def disproofs(
        self, wanted: Sequence[tuple[Identity, bytes]]
    ) -> dict[tuple[Identity, bytes], StaleReason | None]:
        """Why each path is not its inode; None if it is. UNREACHABLE where nobody answered."""
        reasons: dict[tuple[Identity, bytes], StaleReason | None] = {}
        waiting: dict[int, list[tuple[Identity, bytes]]] = {}
        for one in wanted:
            kdev = one[0].kdev
            if self.root.may_block(kdev):
                waiting.setdefault(kdev, []).append(one)
            else:
                reasons[one] = self._disproof(*one)
        for batch in waiting.values():
            reasons |= self._disproofs_aside(batch)
        return reasons

    def _disproofs_aside(
        self, batch: Sequence[tuple[Identity, bytes]]
    ) -> dict[tuple[Identity, bytes], StaleReason | None]:
        def ask() -> dict[tuple[Identity, bytes], StaleReason | None]:
            return {one: self._disproof(*one) for one in batch}

        def failed(_why: str) -> dict[tuple[Identity, bytes], StaleReason | None]:
            return dict.fromkeys(batch, StaleReason.UNREACHABLE)

        return ask_in_child(ask, failed, _PATIENCE_S)

    def _disproof(self, identity: Identity, path: bytes) -> StaleReason | None:
        return disproof(self.root, identity, path)

    def _roots_name(self) -> str:
        if not self.nested:
            return self._name
        others = f"{len(self.nested)} other mount namespaces" if len(self.nested) > 1 else "another"
        return f"{self._name} and {others}"

    # Which namespace, which device

    def _judge(self, mappings: list[Mapping]) -> list[AuditFinding]:
        self._total = len(mappings)
        findings: list[AuditFinding] = []
        by_kdev: dict[int, list[Mapping]] = {}
        elsewhere: dict[int, list[Mapping]] = {}
        for mapping in mappings:
            if mapping.mntns in self._namespaces:
                by_kdev.setdefault(mapping.identity.kdev, []).append(mapping)
            elif mapping.mntns in self.nested:
                elsewhere.setdefault(mapping.mntns, []).append(mapping)
            elif self.options.pid is not None:
                self._left_out += 1  # who names a tree asks for nothing else
            else:
                findings.append(_foreign(mapping))
        for mntns, group in elsewhere.items():
            findings += self.nested[mntns]._judge(group)  # noqa: SLF001 of our own class
        for kdev, group in by_kdev.items():
            mounts = self.root.mounts_of(kdev)
            if not mounts:
                findings += map(self._unmounted, group)
            elif self.root.may_block(kdev):
                findings += self._judge_aside(kdev, group)
            else:
                findings += self._judge_device(kdev, group)
        return findings

    def _own_namespaces(self) -> set[int]:
        # Rows of the root task's namespace do not say which that is (0). A task of a namespace
        # that the database knows as a nested one is not of it.
        mntns = self.root.mntns
        named = self.options.pid is not None
        if named and any(row.mntns == mntns for row in self._rows):
            return {mntns}
        return {0, mntns}

    def _open_nested(self) -> None:
        # Only what rows are of. Their paths start at the namespace's own root, or where all of its
        # tasks are in chroots at one that no row names: those are left out.
        if self.options.pid is None:
            return
        missing = {row.mntns for row in self._rows} - self._namespaces - {0}
        for task in tasks.task_tree(self.options.pid) if missing else ():
            with contextlib.suppress(OSError, TaskError):  # it has ended, or is not ours to see
                mntns = mountinfo.mount_namespace(task.pid)
                root = open_namespace(mntns) if mntns in missing else None
                if root is not None:
                    missing.remove(mntns)
                    self.nested[mntns] = self._inside(self._opened.enter_context(root))

    def _inside(self, root: Root) -> Audit:
        root.adopt(self.options.config)
        nested = Audit(root, self.options, self._opened)
        nested._rows, nested._namespaces = self._rows, {root.mntns}
        nested._name = f"the root of mount namespace {root.mntns}"
        return nested

    def _unmounted(self, mapping: Mapping) -> AuditFinding:
        found, changed_at, unseen = self._trace(mapping.path)
        kdev, handle = mapping.identity.kdev, mapping.identity.handle
        device = format_kdev(kdev)
        note = f"{device} is not mounted here"
        if self.root.mounts_of(kdev):
            note = f"{device} is not mounted there any more"
        elif any(mount.kdev == kdev for mount in self.root.mounts):
            note = f"what is mounted of {device} is hidden under other mounts"
        elif found is not None and handle is not None and found.handle == handle:
            note = f"{note}; {format_kdev(found.kdev)} has a file with its handle at the path"
        evidence = Evidence(StaleReason.UNMOUNTED, found, changed_at, unseen=unseen, note=note)
        return AuditFinding(mapping, AuditVerdict.UNMOUNTED, evidence)

    def _judge_aside(self, kdev: int, group: list[Mapping]) -> Iterator[AuditFinding]:
        kinds = self.root.blocking_kinds(kdev)
        why = ""
        for start in range(0, len(group), _MAPPINGS_ASIDE):
            some = group[start : start + _MAPPINGS_ASIDE]
            if not why:
                answers = self._answers_aside(kdev, some)
                if not isinstance(answers, str):
                    yield from answers
                    self._tick(len(some))
                    continue
                why = f"{kinds}: {answers}"
            for mapping in some:
                evidence = Evidence(StaleReason.UNREACHABLE, unseen=why)
                yield AuditFinding(mapping, AuditVerdict.UNREACHABLE, evidence)

    def _answers_aside(self, kdev: int, some: list[Mapping]) -> list[AuditFinding] | str:
        # Or the reason why there are none.
        return ask_in_child(lambda: self._judge_device(kdev, some), str, _PATIENCE_S)

    # One device

    def _judge_device(self, kdev: int, group: list[Mapping]) -> list[AuditFinding]:
        findings: list[AuditFinding] = []
        lost: list[tuple[Mapping, StaleReason]] = []
        valid = AuditVerdict.VALID
        for number, mapping in enumerate(group, 1):
            reason = self._disproof(mapping.identity, mapping.path)
            if reason is None:
                findings.append(AuditFinding(mapping, valid))
            else:
                lost.append((mapping, reason))
            if number % _TICK == 0:
                self._tick(_TICK)
        self._tick(len(group) % _TICK)
        if lost:
            findings += self._judge_lost(kdev, lost, findings)
        return findings

    def _tick(self, more: int) -> None:
        self._done += more
        self.options.on_checked(self._done, self._total)

    def _judge_lost(
        self, kdev: int, lost: list[tuple[Mapping, StaleReason]], valid: list[AuditFinding]
    ) -> list[AuditFinding]:
        # Who has no handle is not looked for: a number found elsewhere proves nothing.
        wanted = {m.identity for m, _ in lost if m.identity.handle is not None}
        outcome = self._resolve(wanted)
        for finding in valid:
            # Further names (hard links) that are stored already, and hold.
            identity, path = finding.mapping.identity, finding.mapping.path
            answer = outcome.resolved.get(identity)
            if answer is not None and path not in {answer.path, *answer.other_paths}:
                others = (*answer.other_paths, path)
                outcome.resolved[identity] = answer._replace(other_paths=others)
        unknown = [identity.handle for identity in outcome.unresolved if identity.handle]
        known = fates(self.root, kdev, unknown)
        return [self._weigh(mapping, reason, outcome, known) for mapping, reason in lost]

    def _resolve(self, wanted: Collection[Identity]) -> Resolution:
        root = self.root
        keys = {identity.key for identity in wanted}
        rows: dict[InodeKey, list[Mapping]] = {}
        for row in self._rows:
            if row.identity.key in keys and row.mntns in self._namespaces:
                rows.setdefault(row.identity.key, []).append(row)
        others = StoredRows(lambda some: {key: rows[key] for key in some if key in rows})
        resolvers: list[engine.Resolver] = [
            Handles(root),
            BtrfsLookup(root),
            XfsParents(root),
            others,
        ]
        if self.options.search:
            resolvers.append(self.scan)
        return engine.resolve(
            wanted,
            resolvers,
            self._disproof,
            prefer=lambda paths: sorted(paths, key=lambda path: (len(path), path)),
        )

    def _weigh(
        self,
        mapping: Mapping,
        reason: StaleReason,
        outcome: Resolution,
        known: dict[FileHandle, InodeState],
    ) -> AuditFinding:
        identity, path = mapping.identity, mapping.path
        if reason is StaleReason.AMBIGUOUS:
            shared = Evidence(reason, unseen="the kernel shows the same of several files there")
            return AuditFinding(mapping, AuditVerdict.UNREACHABLE, shared)
        found, changed_at, unseen = self._trace(path)
        if reason is StaleReason.UNREACHABLE:
            # What can be looked at now was not to be looked at before.
            unseen = unseen or "the first look at it failed"
            return AuditFinding(mapping, AuditVerdict.UNREACHABLE, Evidence(reason, unseen=unseen))
        if reason is StaleReason.GONE:
            unseen = ""  # the proof has looked, where `_look` would rather not
        answer = outcome.resolved.get(identity)
        if answer is not None:
            names = (answer.path, *answer.other_paths)
            if path in names:
                return AuditFinding(mapping, AuditVerdict.VALID)  # it was put back while we looked
            evidence = Evidence(reason, found, changed_at, names, answer.source, unseen)
            return AuditFinding(mapping, AuditVerdict.MOVED, evidence)
        if reason is StaleReason.UNMOUNTED and not self.root.mounts_of(identity.kdev):
            return self._unmounted(mapping)
        fate, note = self._fate(identity, outcome, known)
        verdict = _LOST.get(reason, AuditVerdict.REPLACED)
        if fate is InodeState.NAMED:
            # Where the root shows a part of the device alone, the name may be outside of it.
            verdict = AuditVerdict.MOVED if self._shows_all_of(identity.kdev) else verdict
        elif (
            verdict in {AuditVerdict.GONE, AuditVerdict.UNMOUNTED}
            and fate is not InodeState.UNKNOWN
        ):
            verdict = AuditVerdict.DELETED
        if verdict is AuditVerdict.UNMOUNTED:
            note = f"{format_kdev(identity.kdev)} is mounted elsewhere, not at the path; {note}"
        evidence = Evidence(reason, found, changed_at, unseen=unseen, note=note)
        return AuditFinding(mapping, verdict, evidence)

    def _fate(
        self, identity: Identity, outcome: Resolution, known: dict[FileHandle, InodeState]
    ) -> tuple[InodeState, str]:
        # Of what nobody knows a path of; and what there is to say about it.
        if identity.handle is None:
            return InodeState.UNKNOWN, "no handle was stored to look for it by"
        failure = outcome.unresolved[identity]
        fate = InodeState.UNLINKED if failure.deleted else known[identity.handle]
        note = _FATE_NOTES.get(fate, failure.why)
        partly = fate is InodeState.NAMED and not self._shows_all_of(identity.kdev)
        if partly:
            nowhere = f"at no known path below {self._name}"
            note = f"it is there on its device, but {nowhere} ({failure.why})"
        if not self.options.search:
            if fate is InodeState.NAMED and not partly:
                note = "it is there, under a name that nobody knows: a search scans for it"
            elif partly or fate is InodeState.UNKNOWN:
                note = f"{note}; a search scans for it"
        return fate, note

    def _shows_all_of(self, kdev: int) -> bool:
        return any(mount.root == b"/" for mount in self.root.mounts_of(kdev))

    def _trace(self, path: bytes) -> tuple[Identity | None, datetime | None, str]:
        """What is at a path, when that or the place where it was last changed; or why unknown."""
        if not path.startswith(b"/") or b"\0" in path:
            return None, None, ""
        found, at, unseen = self._look(path)
        if found is not None:
            return found, at and datetime.fromtimestamp(at.st_ctime_ns / 1e9, UTC), ""
        while at is None and path not in {b"", b"/"}:
            path = path[: path.rfind(b"/")]
            at = self._look(path or b"/").status
        return None, at and datetime.fromtimestamp(at.st_mtime_ns / 1e9, UTC), unseen

    def _look(self, path: bytes) -> _Sight:
        kinds = self.root.blocking_kinds_to(path)
        if kinds:
            return _Sight(unseen=f"{kinds} may not answer")
        try:
            fd = self.root.open(path)
        except OSError as error:
            return _Sight(unseen=_why_unseen(error))
        try:
            return _Sight(identify_fd(self.root, fd), os.fstat(fd))
        except OSError as error:
            return _Sight(unseen=_why_unseen(error))
        finally:
            os.close(fd)


def _root_name(options: AuditOptions) -> str:
    if options.root is not None:
        return printable(options.root)
    return "our own root" if options.pid is None else f"the root of process {options.pid}"


# What the proof's reason comes to where nobody knows of another path.
_LOST = {
    StaleReason.GONE: AuditVerdict.GONE,
    StaleReason.BAD_PATH: AuditVerdict.GONE,
    StaleReason.REPLACED: AuditVerdict.REPLACED,
    StaleReason.SYMLINK: AuditVerdict.REPLACED,
    StaleReason.REUSED: AuditVerdict.REUSED,
    StaleReason.UNMOUNTED: AuditVerdict.UNMOUNTED,
}
_FATE_NOTES = {
    InodeState.GONE: "the filesystem does not know its handle any more",
    InodeState.UNLINKED: "it has no name left, but somebody holds it open",
}


def _why_unseen(error: OSError) -> str:
    if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ESTALE}:
        return ""  # there is nothing to be seen
    return os.strerror(error.errno or 0)


def _foreign(mapping: Mapping) -> AuditFinding:
    note = f"of mount namespace {mapping.mntns}: name one of its tasks"
    if not mapping.mntns:
        note = "of the root task's mount namespace: name that task with -t"
    evidence = Evidence(unseen="the path starts at another root", note=note)
    return AuditFinding(mapping, AuditVerdict.UNREACHABLE, evidence)
