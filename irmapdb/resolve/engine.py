"""Asks the sources one after the other, and accepts only proved paths.

It asks the resolvers one after the other, the cheapest first, each for all inodes that have no path
yet. They give candidates; only `prove` makes a candidate an answer. The engine uses no kernel, no
database and no file: it imports only the model.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, KeysView, Mapping, Sequence

from irmapdb.model import (
    Identity,
    Resolved,
    Source,
    StaleReason,
    Tried,
    Unresolved,
    printable,
)
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol, TypeAlias

__all__ = [
    "Answer",
    "Candidate",
    "Deleted",
    "Disproved",
    "Note",
    "Prefer",
    "Prove",
    "Resolution",
    "Resolver",
    "Wanted",
    "resolve",
]


_MOST_TRIED = 16
"""The largest number of reasons that an inode without a path keeps, for people."""

_SHARED = "may be another file, as the kernel shows the same of several"


class Candidate(Record):
    """A path that may be the answer."""

    identity: Identity
    path: bytes


class Note(Record):
    """The reason why a resolver has no candidate, for people. The search continues."""

    identity: Identity
    text: str


class Deleted(Record):
    """The inode has no name and no mount point, so the search for it ends."""

    identity: Identity


Answer: TypeAlias = Candidate | Note | Deleted

Wanted: TypeAlias = KeysView[Identity]
"""The inodes without an answer: a live view that shrinks while a resolver works."""

Prove: TypeAlias = Callable[[Identity, bytes], StaleReason | None]
"""The reason why a path is not the wanted inode, asked from the kernel now; None if it is."""

Prefer: TypeAlias = Callable[[Sequence[bytes]], Sequence[bytes]]
"""Several proved names of one inode, the best one first."""


if TYPE_CHECKING:

    class Resolver(Protocol):
        """Gives candidates for a batch.

        Each candidate is proved before the resolver gives the next one. So a resolver that reads
        `wanted` again sees the inodes that are still open.
        """

        source: Source

        def __call__(self, wanted: Wanted) -> Iterator[Answer]: ...


class Disproved(Record):
    """A candidate that failed the proof."""

    identity: Identity
    path: bytes
    source: Source
    reason: StaleReason
    mntns: int = 0
    """As in Mapping: the path starts at the root of this mount namespace."""


class Resolution:
    """The result of a batch: every identity is in one of the first two."""

    def __init__(
        self,
        resolved: dict[Identity, Resolved] | None = None,
        unresolved: dict[Identity, Unresolved] | None = None,
        disproved: list[Disproved] | None = None,
    ) -> None:
        self.resolved = {} if resolved is None else resolved
        self.unresolved = {} if unresolved is None else unresolved
        self.disproved = [] if disproved is None else disproved

    @property
    def cut(self) -> int:
        """The number of inodes without a path because the time was up."""
        return sum(failure.cut for failure in self.unresolved.values())

    def update(self, later: Resolution) -> None:
        """Add the result of a later batch, which replaces older answers."""
        for identity in later.resolved:
            self.unresolved.pop(identity, None)
        for identity in later.unresolved:
            self.resolved.pop(identity, None)
        self.resolved.update(later.resolved)
        self.unresolved.update(later.unresolved)
        self.disproved += later.disproved


def resolve(
    identities: Iterable[Identity] | Mapping[Identity, Sequence[Tried]],
    resolvers: Iterable[Resolver],
    prove: Prove,
    *,
    prefer: Prefer = lambda paths: sorted(paths, key=len),
    over: Callable[[], bool] = lambda: False,
) -> Resolution:
    """Find a proved path for each identity, or the reason of each resolver.

    One resolver may prove several names of an inode; all are kept. If `over` returns True, the time
    is up: the result has the paths proved so far, and the rest is unresolved and `cut`. Identities
    may already have the reasons of earlier resolvers.
    """
    tried = identities if isinstance(identities, Mapping) else dict.fromkeys(identities, ())
    batch = _Batch({identity: [*before] for identity, before in tried.items()}, prove)
    for resolver in resolvers:
        if not batch.pending or over():
            break
        answers = resolver(batch.pending.keys())
        try:
            for answer in answers:
                batch.take(answer, resolver.source)
                if over():
                    break
        finally:
            if isinstance(answers, Generator):
                answers.close()  # it may have files, directories and threads open
    return batch.outcome(prefer, cut=over())


class _Batch:
    def __init__(self, pending: dict[Identity, list[Tried]], prove: Prove) -> None:
        self.pending = pending
        self._prove = prove
        self._resolved: dict[Identity, Resolved] = {}
        self._further: dict[Identity, dict[bytes, None]] = {}  # names, of the few that have several
        self._deleted: dict[Identity, list[Tried]] = {}
        self._disproved: list[Disproved] = []

    def take(self, answer: Answer, source: Source) -> None:
        identity = answer.identity
        if isinstance(answer, Candidate):
            self._take_candidate(identity, answer.path, source)
        elif isinstance(answer, Note):
            if identity in self.pending:
                self.pending[identity].append(Tried(source, answer.text))
        elif identity in self.pending:
            tried = self.pending.pop(identity)
            self._deleted[identity] = [*tried, Tried(source, "deleted")]

    def _take_candidate(self, identity: Identity, path: bytes, source: Source) -> None:
        known = self._resolved.get(identity)
        if known and (path == known.path or path in self._further.get(identity, ())):
            return
        reason = self._prove(identity, path)
        if reason is None:
            self.pending.pop(identity, None)
            self._deleted.pop(identity, None)
            if known is None:
                self._resolved[identity] = Resolved(identity, path, source)
            else:
                self._further.setdefault(identity, {})[path] = None
            return
        self._disproved.append(Disproved(identity, path, source, reason))
        if identity in self.pending:
            what = _SHARED if reason is StaleReason.AMBIGUOUS else f"is {reason}"
            tried, said = Tried(source, f"{printable(path)} {what}"), self.pending[identity]
            # A walk may meet a file several times, and thousands of files may look alike.
            if len(said) < _MOST_TRIED and tried not in said:
                said.append(tried)

    def outcome(self, prefer: Prefer, *, cut: bool) -> Resolution:
        outcome = Resolution(self._resolved, disproved=self._disproved)
        for identity, further in self._further.items():
            known = self._resolved[identity]
            best, *others = prefer([known.path, *further])
            self._resolved[identity] = known._replace(path=best, other_paths=tuple(others))
        for identity, tried in self._deleted.items():
            outcome.unresolved[identity] = Unresolved(identity, tuple(tried), deleted=True)
        for identity, tried in self.pending.items():
            said = (*tried, Tried("engine", "the time budget was over")) if cut else tuple(tried)
            outcome.unresolved[identity] = Unresolved(identity, said, cut=cut)
        return outcome
