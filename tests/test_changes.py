"""The changes of the stored rows, from the proved paths of a step."""

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irmapdb.checkpoint import changes
from irmapdb.checkpoint.changes import ChangeSet
from irmapdb.model import (
    Change,
    ChangeKind,
    FileHandle,
    Identity,
    Mapping,
    Resolved,
    Source,
    StaleReason,
)
from irmapdb.resolve import engine
from irmapdb.resolve.engine import Candidate, Disproved, Resolution

NOW = datetime(2026, 1, 2, tzinfo=UTC)
A, B = (Identity(7, 100, FileHandle(1, name)) for name in (b"a", b"b"))  # one key, two inodes
C = Identity(7, 300, FileHandle(1, b"c"))
NESTED = 4026532200


def row(row_id, identity, path, *, stale=None, mntns=0):
    return Mapping(
        identity,
        path,
        Source.SCAN,
        revalidate=True,
        first_seen_at=NOW,
        stale_at=None if stale is None else NOW,
        stale_reason=stale,
        mntns=mntns,
        id=row_id,
    )


def loaded(*rows):
    found = {}
    for one in rows:
        found.setdefault(one.identity.key, []).append(one)
    return found


def outcome(*resolved, disproved=()):
    return Resolution({answer.identity: answer for answer in resolved}, {}, list(disproved))


def failed(identity, path, reason=StaleReason.GONE, source=Source.STORED, mntns=0):
    return Disproved(identity, path, source, reason, mntns)


def unasked(identity, path):
    message = f"{identity} {path} needs no second proof"
    raise AssertionError(message)


def test_a_row_that_holds_is_a_hit_and_no_news():
    rows = loaded(row(1, A, b"/a"))
    answer = Resolved(A, b"/a", Source.STORED)
    assert changes.diff(rows, outcome(answer), unasked) == ChangeSet((), (), 1)


def test_a_first_path_is_found():
    answer = Resolved(A, b"/a", Source.HANDLE, (b"/hard",))
    found = Change(ChangeKind.FOUND, A, b"/a")
    assert changes.diff({}, outcome(answer), unasked) == ChangeSet((), (found,), 0)


def test_a_row_that_failed_is_stale_or_moved():
    lost = row(1, A, b"/a")
    gone = failed(A, b"/a", StaleReason.REPLACED)
    stale = Change(ChangeKind.STALE, A, b"/a", reason=StaleReason.REPLACED)
    assert changes.diff(loaded(lost), outcome(disproved=[gone]), unasked) == ChangeSet(
        ((lost, StaleReason.REPLACED),), (stale,), 0
    )
    answer = Resolved(A, b"/new", Source.SCAN)
    moved = Change(ChangeKind.MOVED, A, b"/new", b"/a", StaleReason.REPLACED)
    assert changes.diff(
        loaded(lost), outcome(answer, disproved=[gone, gone]), unasked
    ) == ChangeSet(((lost, StaleReason.REPLACED),), (moved,), 0)


def test_a_number_alone_has_not_moved():
    # The row was of an image: perhaps another file had the number then.
    bare = A._replace(handle=None)
    rows = loaded(row(1, bare, b"/a"))
    gone = failed(A, b"/a")
    told = changes.diff(rows, outcome(Resolved(A, b"/new", Source.SCAN), disproved=[gone]), unasked)
    assert told.changes == (
        Change(ChangeKind.FOUND, A, b"/new"),
        Change(ChangeKind.STALE, bare, b"/a", reason=StaleReason.GONE),
    )
    # Nor has a watch whose handle the kernel does not show.
    rows = loaded(row(1, A, b"/a"))
    gone = failed(bare, b"/a")
    answer = Resolved(bare, b"/new", Source.SCAN)
    told = changes.diff(rows, outcome(answer, disproved=[gone]), lambda *_: StaleReason.GONE)
    assert [change.kind for change in told.changes] == [ChangeKind.FOUND, ChangeKind.STALE]
    # Of two lost names the one that is known by its handle has.
    rows = loaded(row(1, A, b"/a"), row(2, bare, b"/b"))
    both = [failed(A, b"/a"), failed(A, b"/b")]
    told = changes.diff(rows, outcome(Resolved(A, b"/new", Source.SCAN), disproved=both), unasked)
    assert told.changes == (
        Change(ChangeKind.MOVED, A, b"/new", b"/a", StaleReason.GONE),
        Change(ChangeKind.STALE, bare, b"/b", reason=StaleReason.GONE),
    )


def test_of_several_lost_names_the_best_moved_and_the_others_are_stale():
    rows = loaded(row(1, A, b"/old"), row(2, A, b"/best"))
    answer = Resolved(A, b"/new", Source.HANDLE)
    told = changes.diff(
        rows, outcome(answer, disproved=[failed(A, b"/old"), failed(A, b"/best")]), unasked
    )
    assert {one.path for one, _ in told.stale} == {b"/old", b"/best"}
    assert told.changes == (
        Change(ChangeKind.MOVED, A, b"/new", b"/best", StaleReason.GONE),
        Change(ChangeKind.STALE, A, b"/old", reason=StaleReason.GONE),
    )


def test_one_of_two_hard_links_went():
    rows = loaded(row(1, A, b"/kept"), row(2, A, b"/gone"))
    answer = Resolved(A, b"/kept", Source.STORED)
    told = changes.diff(rows, outcome(answer, disproved=[failed(A, b"/gone")]), unasked)
    assert told.changes == (Change(ChangeKind.STALE, A, b"/gone", reason=StaleReason.GONE),)
    assert told.hits == 1


def test_a_stale_row_does_not_change_until_its_path_is_right_again():
    rows = loaded(row(1, A, b"/a", stale=StaleReason.GONE))
    assert changes.diff(rows, outcome(disproved=[failed(A, b"/a")]), unasked) == ChangeSet(
        (), (), 0
    )
    answer = Resolved(A, b"/a", Source.HANDLE)
    revived = Change(ChangeKind.REVIVED, A, b"/a")
    assert changes.diff(rows, outcome(answer), unasked) == ChangeSet((), (revived,), 0)


def test_a_candidate_that_was_no_row_condemns_none():
    rows = loaded(row(1, A, b"/a"))
    wrong = failed(A, b"/a", source=Source.SCAN)
    assert changes.diff(rows, outcome(disproved=[wrong]), unasked) == ChangeSet((), (), 0)


def test_only_its_own_inode_condemns_a_row():
    # Two inodes of one (kdev, ino), each at its place: A's row was tried for B too, and failed.
    rows = loaded(row(1, A, b"/a"), row(2, B, b"/b"))
    both = [Resolved(A, b"/a", Source.STORED), Resolved(B, b"/b", Source.STORED)]
    crossed = [failed(B, b"/a", StaleReason.REUSED), failed(A, b"/b", StaleReason.REUSED)]
    told = changes.diff(rows, outcome(*both, disproved=crossed), lambda *_: None)
    assert told == ChangeSet((), (), 2)
    # A is watched no more, and its row is asked about in its own name.
    asked = []

    def disprove(identity, path):
        asked.append((identity, path))
        return StaleReason.GONE

    told = changes.diff(rows, outcome(both[1], disproved=[crossed[0]]), disprove)
    assert asked == [(A, b"/a")]
    assert [(one.id, reason) for one, reason in told.stale] == [(1, StaleReason.GONE)]
    told = changes.diff(rows, outcome(both[1], disproved=[crossed[0]]), lambda *_: None)
    assert told.stale == ()


def test_a_watch_without_a_handle_condemns_no_row_that_has_one():
    """Its number is all that they have in common; the row's own inode is asked for."""
    rows = loaded(row(1, A, b"/a"))
    cold = outcome(disproved=[failed(A._replace(handle=None), b"/a", StaleReason.REUSED)])
    assert changes.diff(rows, cold, lambda *_: None) == ChangeSet((), (), 0)
    gone = changes.diff(rows, cold, lambda *_: StaleReason.GONE)
    assert [(one.id, reason) for one, reason in gone.stale] == [(1, StaleReason.GONE)]


def test_a_row_that_another_inode_overwrites_is_reused():
    rows = loaded(row(1, A, b"/x"))
    answer = Resolved(B, b"/x", Source.STORED)
    told = changes.diff(rows, outcome(answer), unasked)
    assert told.stale == ()  # there is but one row for the path, and it is B's now
    assert told.changes == (
        Change(ChangeKind.STALE, A, b"/x", reason=StaleReason.REUSED),
        Change(ChangeKind.FOUND, B, b"/x"),
    )
    # A row that was stale before is no change.
    rows = loaded(row(1, A, b"/x", stale=StaleReason.GONE))
    assert changes.diff(rows, outcome(answer), unasked).changes == (
        Change(ChangeKind.FOUND, B, b"/x"),
    )


def test_swapped_names_of_one_key_are_one_change_each():
    rows = loaded(row(1, A, b"/x"), row(2, B, b"/y"))
    swapped = [Resolved(A, b"/y", Source.STORED), Resolved(B, b"/x", Source.STORED)]
    wrong = [failed(A, b"/x", StaleReason.REUSED), failed(B, b"/y", StaleReason.REUSED)]
    told = changes.diff(rows, outcome(*swapped, disproved=wrong), unasked)
    assert told.changes == (
        Change(ChangeKind.MOVED, A, b"/y", b"/x", StaleReason.REUSED),
        Change(ChangeKind.MOVED, B, b"/x", b"/y", StaleReason.REUSED),
    )


def test_a_row_that_failed_for_a_while_and_holds_in_the_end_is_no_news():
    # Renamed away while it was looked for, and back before the tasks stood still.
    rows = loaded(row(1, A, b"/a"))
    answer = Resolved(A, b"/a", Source.STORED)
    told = changes.diff(rows, outcome(answer, disproved=[failed(A, b"/a")]), unasked)
    assert told == ChangeSet((), (), 1)


class Compared(bytes):
    """A path that counts how often it is compared."""

    __slots__ = ()
    count = 0

    def __eq__(self, other):
        Compared.count += 1
        return bytes.__eq__(self, other)

    __hash__ = bytes.__hash__


@pytest.mark.parametrize("are_gone", [True, False])
def test_thousands_of_names_of_one_file_are_not_compared_pairwise(are_gone):
    names = 500
    paths = [Compared(b"/old/%d" % number) for number in range(names)]
    rows = loaded(*(row(number, A, path) for number, path in enumerate(paths)))
    if are_gone:
        result = outcome(
            Resolved(A, b"/new", Source.BTRFS), disproved=[failed(A, path) for path in paths]
        )
    else:
        result = outcome(Resolved(A, paths[0], Source.STORED, tuple(paths[1:])))
    Compared.count = 0
    found = changes.diff(rows, result, unasked)
    assert len(found.stale) == (names if are_gone else 0)
    assert Compared.count < 10 * names


def test_the_rows_of_each_mount_namespace_change_apart():
    rows = loaded(row(1, A, b"/a"), row(2, A, b"/a", mntns=NESTED))
    # Gone in the main root, still there in the nested one.
    answer = Resolved(A, b"/a", Source.STORED, mntns=NESTED)
    told = changes.diff(rows, outcome(answer, disproved=[failed(A, b"/a")]), unasked)
    assert [(one.id, reason) for one, reason in told.stale] == [(1, StaleReason.GONE)]
    assert told.changes == (Change(ChangeKind.STALE, A, b"/a", reason=StaleReason.GONE),)
    # It is lost there and found elsewhere there: the change names the root of its paths.
    answer = answer._replace(path=b"/new", source=Source.SCAN)
    told = changes.diff(
        loaded(row(2, A, b"/a", mntns=NESTED)),
        outcome(answer, disproved=[failed(A, b"/a", mntns=NESTED)]),
        unasked,
    )
    assert told.changes == (
        Change(ChangeKind.MOVED, A, b"/new", b"/a", StaleReason.GONE, mntns=NESTED),
    )
    told = changes.diff({}, outcome(answer), unasked)
    assert told.changes == (Change(ChangeKind.FOUND, A, b"/new", mntns=NESTED),)


identities = st.sampled_from([A, B, C])
paths = st.sampled_from([b"/1", b"/2", b"/3"])
# The file at each path now, and the stored rows: at most one for a key and path.
worlds = st.dictionaries(paths, identities)
stored = st.dictionaries(
    st.tuples(st.sampled_from([A.key, C.key]), paths),
    st.tuples(
        st.booleans(), st.booleans()
    ),  # which of the two has the row, and whether it is stale
    max_size=6,
)


class Rows:
    """The stored rows, as a resolver."""

    source = Source.STORED

    def __init__(self, rows):
        self.rows = rows

    def __call__(self, wanted):
        for identity in list(wanted):
            for one in self.rows.get(identity.key, ()):
                if not one.stale:
                    yield Candidate(identity, one.path)


class Everywhere:
    """Every path that there is, as a resolver."""

    source = Source.SCAN

    def __call__(self, wanted):
        for identity in list(wanted):
            for path in (b"/1", b"/2", b"/3"):
                yield Candidate(identity, path)


def proof_in(world):
    return lambda identity, path: None if world.get(path) == identity else StaleReason.GONE


@given(before=worlds, rows_of=stored, watched=st.frozensets(identities), after=worlds)
@settings(max_examples=3 * settings.default.max_examples)
def test_random_changes_are_reported_as_they_are(before, rows_of, watched, after):
    # Two looks at a world that changes in between, as dump has them.
    every_row = [
        row(
            number,
            C if key == C.key else (A if first else B),
            path,
            stale=StaleReason.GONE if stale else None,
        )
        for number, ((key, path), (first, stale)) in enumerate(rows_of.items())
    ]
    rows = loaded(*every_row)
    resolvers = [Rows(rows), Everywhere()]
    seen = engine.resolve(watched, resolvers, proof_in(before))
    seen.update(engine.resolve(watched, resolvers, proof_in(after)))
    change_set = changes.diff(rows, seen, proof_in(after))
    check_rows(every_row, change_set, watched, after)
    check_changes(every_row, change_set, after)


def check_rows(every_row, change_set, watched, world):
    # A row is condemned if it was tried and does not hold in the end, and for no other reason.
    condemned = {one.id for one, _ in change_set.stale}
    for one in every_row:
        holds = world.get(one.path) == one.identity
        tried = any(identity.key == one.identity.key for identity in watched)
        if holds or one.stale or not tried:
            assert one.id not in condemned
        elif one.identity in watched:
            assert one.id in condemned


def check_changes(every_row, change_set, world):
    ended, begun = [], []
    for change in change_set.changes:
        if change.kind is ChangeKind.STALE:
            ended.append((change.identity, change.path))
            continue
        begun.append((change.identity, change.path))
        if change.kind is ChangeKind.MOVED:
            ended.append((change.identity, change.old_path))
    # Each wrong row is one change, and each row that became stale is a change.
    assert len(set(ended)) == len(ended)
    assert {(one.identity, one.path) for one, _ in change_set.stale} <= set(ended)
    assert all(world.get(path) != identity for identity, path in ended)
    # A found path has the inode, and was not stored before.
    assert len(set(begun)) == len(begun)
    live = {(one.identity, one.path) for one in every_row if not one.stale}
    assert not live & set(begun)
    assert all(world[path] == identity for identity, path in begun)
