"""Audits the mappings whose paths start at one root.

Three questions give a verdict. Is the inode at its path (the proof of irmapdb.kernel.proof)? Is
another path of it known (to the filesystem by its handle, to other rows, to a scan)? Does the
filesystem still know the inode at all (irmapdb.kernel.fs.inode_state)?
"""

from __future__ import annotations

from irmapdb.audit.findings import AuditFinding, AuditVerdict, Evidence
from irmapdb.audit.lost import LostMappings
from irmapdb.kernel.child_call import ask_in_child
from irmapdb.kernel.fs.inode_state import fates
from irmapdb.kernel.proof import disproof
from irmapdb.model import StaleReason
from irmapdb.resolve import engine
from irmapdb.resolve.btrfs import BtrfsLookup
from irmapdb.resolve.handle import Handles
from irmapdb.resolve.stored import StoredRows
from irmapdb.resolve.xfs import XfsParents

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from irmapdb.kernel.root import Root
    from irmapdb.model import Identity, InodeKey, Mapping
    from irmapdb.resolve.engine import Resolution
    from irmapdb.resolve.scan import Scan

__all__ = ["RootAudit"]

_PATIENCE_S = 5.0
"""Limit for `_MAPPINGS_A_CHILD` mappings on a filesystem that may block."""
_MAPPINGS_A_CHILD = 1000
_TICK = 512
_MOST_NAMES = 100
"""The largest number of names of one inode in its findings: each of its rows may have one."""


class RootAudit:
    """Audits mappings in one root, which the caller keeps open."""

    def __init__(
        self,
        root: Root,
        rows: Iterable[Mapping],
        *,
        name: str,
        scan: Scan | None,
        on_checked: Callable[[int], None],
    ) -> None:
        """`rows`: all that is stored of this root. `scan`: asked last, if given.

        `name`: the root, for people. `on_checked` gets the number of newly checked mappings.
        """
        self._root = root
        self._rows: dict[InodeKey, list[Mapping]] = {}
        for row in rows:
            self._rows.setdefault(row.identity.key, []).append(row)
        self._scan = scan
        self._on_checked = on_checked
        self._lost = LostMappings(root, root_name=name, searched=scan is not None)

    @property
    def scanned(self) -> int:
        """The number of directory entries that the scan has compared."""
        return 0 if self._scan is None else self._scan.scanned

    def findings(self, mappings: Iterable[Mapping]) -> Iterator[AuditFinding]:
        """The finding for each mapping, in no order."""
        by_kdev: dict[int, list[Mapping]] = {}
        for mapping in mappings:
            by_kdev.setdefault(mapping.identity.kdev, []).append(mapping)
        for kdev, group in by_kdev.items():
            if not self._root.mounts.of_device(kdev):
                yield from map(self._lost.unmounted, group)
            elif self._root.may_block(kdev):
                yield from self._in_children(kdev, group)
            else:
                yield from self._of_device(kdev, group)

    def disproofs(
        self, wanted: Sequence[tuple[Identity, bytes]]
    ) -> dict[tuple[Identity, bytes], StaleReason | None]:
        """Why each path is not its inode; None if it is. UNREACHABLE if there was no answer."""
        reasons: dict[tuple[Identity, bytes], StaleReason | None] = {}
        blocking: dict[int, list[tuple[Identity, bytes]]] = {}
        for one in wanted:
            kdev = one[0].kdev
            if self._root.may_block(kdev):
                blocking.setdefault(kdev, []).append(one)
            else:
                reasons[one] = self._disproof(*one)
        for batch in blocking.values():
            reasons |= self._disproofs_in_child(batch)
        return reasons

    def _disproofs_in_child(
        self, batch: Sequence[tuple[Identity, bytes]]
    ) -> dict[tuple[Identity, bytes], StaleReason | None]:
        def ask() -> dict[tuple[Identity, bytes], StaleReason | None]:
            return {one: self._disproof(*one) for one in batch}

        def failed(_why: str) -> dict[tuple[Identity, bytes], StaleReason | None]:
            return dict.fromkeys(batch, StaleReason.UNREACHABLE)

        return ask_in_child(ask, failed, _PATIENCE_S)

    def _disproof(self, identity: Identity, path: bytes) -> StaleReason | None:
        return disproof(self._root, identity, path)

    # One device

    def _in_children(self, kdev: int, group: list[Mapping]) -> Iterator[AuditFinding]:
        kinds = self._root.blocking_kinds(kdev)
        why = ""
        for start in range(0, len(group), _MAPPINGS_A_CHILD):
            some = group[start : start + _MAPPINGS_A_CHILD]
            if not why:
                found, why = self._in_child(kdev, some, kinds)
                if not why:
                    yield from found
                    self._on_checked(len(some))
                    continue
            for mapping in some:
                evidence = Evidence(StaleReason.UNREACHABLE, unseen=why)
                yield AuditFinding(mapping, AuditVerdict.UNREACHABLE, evidence)

    def _in_child(
        self, kdev: int, some: list[Mapping], kinds: str
    ) -> tuple[list[AuditFinding], str]:
        # The findings, or the reason why there are none.
        return ask_in_child(
            lambda: (self._of_device(kdev, some), ""),
            lambda why: ([], f"{kinds}: {why}"),
            _PATIENCE_S,
        )

    def _of_device(self, kdev: int, group: list[Mapping]) -> list[AuditFinding]:
        valid: list[AuditFinding] = []
        lost: list[tuple[Mapping, StaleReason]] = []
        for number, mapping in enumerate(group, 1):
            reason = self._disproof(mapping.identity, mapping.path)
            if reason is None:
                valid.append(AuditFinding(mapping, AuditVerdict.VALID))
            else:
                lost.append((mapping, reason))
            if number % _TICK == 0:
                self._on_checked(_TICK)
        self._on_checked(len(group) % _TICK)
        return [*valid, *self._lost_findings(kdev, lost, valid)] if lost else valid

    def _lost_findings(
        self, kdev: int, lost: list[tuple[Mapping, StaleReason]], valid: list[AuditFinding]
    ) -> list[AuditFinding]:
        # It does not search for an inode without a handle: the same number elsewhere proves
        # nothing.
        wanted = {m.identity for m, _ in lost if m.identity.handle is not None}
        outcome = self._resolve(wanted)
        # Further names (hard links) that are stored already, and are right.
        stored: dict[Identity, list[bytes]] = {}
        for finding in valid:
            stored.setdefault(finding.mapping.identity, []).append(finding.mapping.path)
        for identity, answer in outcome.resolved.items():
            names = answer.path, *answer.other_paths, *stored.get(identity, ())
            best, *others = [*dict.fromkeys(names)][:_MOST_NAMES]
            outcome.resolved[identity] = answer._replace(path=best, other_paths=tuple(others))
        unknown = [identity.handle for identity in outcome.unresolved if identity.handle]
        states = fates(self._root, kdev, unknown)
        return [self._lost.finding(mapping, reason, outcome, states) for mapping, reason in lost]

    def _resolve(self, wanted: Collection[Identity]) -> Resolution:
        root, rows = self._root, self._rows
        resolvers: list[engine.Resolver] = [
            Handles(root),
            BtrfsLookup(root),
            XfsParents(root),
            StoredRows(lambda some: {key: rows[key] for key in some if key in rows}),
        ]
        if self._scan is not None:
            resolvers.append(self._scan)
        return engine.resolve(
            wanted,
            resolvers,
            self._disproof,
            prefer=lambda paths: sorted(paths, key=lambda path: (len(path), path)),
        )
