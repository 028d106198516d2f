"""The engine's policy, with resolvers and a proof that play a script."""

from hypothesis import given
from hypothesis import strategies as st

from irmapdb.model import (
    FileHandle,
    Identity,
    Resolved,
    Source,
    StaleReason,
    Tried,
    Unresolved,
)
from irmapdb.resolve import engine
from irmapdb.resolve.engine import Candidate, Deleted, Disproved, Note, Resolution

A, B, C = (Identity(7, ino, FileHandle(1, b"%d" % ino)) for ino in (1, 2, 3))
EVERYONE = (A, B, C)


class Script:
    """A resolver that gives these answers, and notes the wanted identities at each."""

    def __init__(self, source, *answers):
        self.source = source
        self.answers = answers
        self.saw = []

    def __call__(self, wanted):
        for answer in self.answers:
            self.saw.append(set(wanted))
            yield answer
        self.saw.append(set(wanted))


def proof(truth):
    """A proof that gives GONE for each path that is not in `truth`, and the list of its calls."""
    asked = []

    def prove(identity, path):
        asked.append((identity, path))
        return None if path in truth.get(identity, ()) else StaleReason.GONE

    return prove, asked


def test_the_first_resolver_with_a_proved_path_ends_the_search():
    prove, asked = proof({A: [b"/a"], B: [b"/b"]})
    first = Script(Source.STORED, Candidate(A, b"/a"), Candidate(B, b"/old"))
    second = Script(Source.HANDLE, Note(B, "no name"), Candidate(B, b"/b"))
    third = Script(Source.SCAN, Candidate(A, b"/wrong"))
    outcome = engine.resolve([A, B], [first, second, third], prove)
    assert vars(outcome) == vars(
        Resolution(
            resolved={
                A: Resolved(A, b"/a", Source.STORED),
                B: Resolved(B, b"/b", Source.HANDLE),
            },
            unresolved={},
            disproved=[Disproved(B, b"/old", Source.STORED, StaleReason.GONE)],
        )
    )
    # Each answer was proved before the next one was asked for.
    assert first.saw == [{A, B}, {B}, {B}]
    assert second.saw == [{B}, {B}, set()]
    assert third.saw == []
    assert asked == [(A, b"/a"), (B, b"/old"), (B, b"/b")]


def test_nothing_is_an_answer_without_the_proof():
    prove, _ = proof({})
    scripts = [
        Script(Source.STORED, Candidate(A, b"/caf\xe9")),
        Script(Source.HANDLE, Note(A, "cannot be opened")),
        Script(Source.SCAN, Candidate(A, b"/b"), Note(A, "not found on /")),
    ]
    outcome = engine.resolve([A], scripts, prove)
    assert outcome.resolved == {}
    assert outcome.unresolved[A] == Unresolved(
        A,
        (
            Tried("stored", r"/caf\xe9 is gone"),
            Tried("handle", "cannot be opened"),
            Tried("scan", "/b is gone"),
            Tried("scan", "not found on /"),
        ),
    )
    assert [one.path for one in outcome.disproved] == [b"/caf\xe9", b"/b"]


def test_every_proved_name_is_kept_once_the_best_one_first():
    prove, asked = proof({A: [b"/long/name", b"/b", b"/cc"]})
    script = Script(
        Source.STORED,
        *(Candidate(A, path) for path in (b"/long/name", b"/cc", b"/b", b"/cc", b"/gone")),
    )
    outcome = engine.resolve([A], [script], prove)
    assert outcome.resolved[A] == Resolved(A, b"/b", Source.STORED, (b"/cc", b"/long/name"))
    assert [path for _, path in asked] == [b"/long/name", b"/cc", b"/b", b"/gone"]
    preferred = engine.resolve([A], [script], prove, prefer=lambda paths: sorted(paths)[::-1])
    assert preferred.resolved[A].path == b"/long/name"
    assert preferred.resolved[A].other_paths == (b"/cc", b"/b")


def test_a_deleted_inode_is_not_looked_for():
    prove, _ = proof({A: [b"/a"], B: [b"/b"]})
    first = Script(Source.HANDLE, Deleted(A), Note(A, "too late"), Candidate(B, b"/b"))
    scan = Script(Source.SCAN, Candidate(A, b"/never asked"))
    outcome = engine.resolve([A, B], [first, scan], prove)
    assert outcome.unresolved == {A: Unresolved(A, (Tried("handle", "deleted"),), deleted=True)}
    assert set(outcome.resolved) == {B}
    assert scan.saw == []


def test_a_proved_name_counts_more_than_a_reported_deletion():
    prove, _ = proof({A: [b"/a"]})
    outcome = engine.resolve([A], [Script(Source.HANDLE, Deleted(A), Candidate(A, b"/a"))], prove)
    assert set(outcome.resolved) == {A}
    assert outcome.unresolved == {}
    # And the other way round.
    outcome = engine.resolve([A], [Script(Source.HANDLE, Candidate(A, b"/a"), Deleted(A))], prove)
    assert set(outcome.resolved) == {A}
    assert outcome.unresolved == {}


def test_when_time_is_up_the_proved_paths_are_the_result():
    prove, asked = proof({A: [b"/a"], B: [b"/b"], C: [b"/c"]})
    script = Script(
        Source.STORED,
        *(Candidate(one, path) for one, path in zip(EVERYONE, [b"/a", b"/b", b"/c"], strict=True)),
    )
    never = Script(Source.SCAN)
    outcome = engine.resolve(EVERYONE, [script, never], prove, over=lambda: len(asked) >= 2)
    assert set(outcome.resolved) == {A, B}
    assert outcome.unresolved[C].why == "engine: the time budget was over"
    assert never.saw == []


def test_no_resolver_is_called_without_an_identity():
    prove, _ = proof({})
    script = Script(Source.STORED)
    assert vars(engine.resolve([], [script], prove)) == vars(Resolution())
    assert script.saw == []
    assert engine.resolve([A], [], prove).unresolved == {A: Unresolved(A, ())}


def test_a_later_batch_knows_better():
    early = Resolution(
        resolved={A: Resolved(A, b"/a", Source.STORED), B: Resolved(B, b"/b", Source.SCAN)},
        unresolved={C: Unresolved(C, ())},
        disproved=[Disproved(C, b"/c", Source.STORED, StaleReason.GONE)],
    )
    late = Resolution(
        resolved={C: Resolved(C, b"/c2", Source.SCAN)},
        unresolved={A: Unresolved(A, ())},
        disproved=[Disproved(A, b"/a", Source.STORED, StaleReason.REPLACED)],
    )
    early.update(late)
    assert set(early.resolved) == {B, C}
    assert set(early.unresolved) == {A}
    assert [one.identity for one in early.disproved] == [C, A]


identities = st.sampled_from(EVERYONE)
paths = st.sampled_from([b"/1", b"/2", b"/3"])
answers = st.one_of(
    st.builds(Candidate, identities, paths),
    st.builds(Note, identities, st.just("a note")),
    st.builds(Deleted, identities),
)
scripts = st.lists(
    st.builds(
        lambda source, found: Script(source, *found),
        st.sampled_from(list(Source)),
        st.lists(answers, max_size=8),
    ),
    max_size=4,
)
truths = st.dictionaries(identities, st.frozensets(paths), max_size=3)


@given(
    wanted=st.frozensets(identities), given_scripts=scripts, truth=truths, calls=st.integers(0, 9)
)
def test_any_answers_give_each_identity_one_outcome(wanted, given_scripts, truth, calls):
    prove, asked = proof(truth)
    # No resolver answers for an identity that is not wanted.
    for script in given_scripts:
        script.answers = [answer for answer in script.answers if answer.identity in wanted]
        script.saw = []
    outcome = engine.resolve(wanted, given_scripts, prove, over=lambda: len(asked) > calls)
    assert outcome.resolved.keys() | outcome.unresolved.keys() == wanted
    assert not outcome.resolved.keys() & outcome.unresolved.keys()
    for identity, answer in outcome.resolved.items():
        names = (answer.path, *answer.other_paths)
        assert set(names) <= truth[identity]
        assert len(set(names)) == len(names)
    for one in outcome.disproved:
        assert one.path not in truth.get(one.identity, ())
    # A proved identity is not wanted any more; one without a proof is wanted to the end.
    for script in given_scripts:
        assert all(
            later <= before for before, later in zip(script.saw, script.saw[1:], strict=False)
        )


def test_thousands_that_look_alike_do_not_fill_the_answer():
    def prove(_identity, path):
        return StaleReason.AMBIGUOUS if path.startswith(b"/a") else StaleReason.GONE

    alike = [Candidate(A, b"/a%d" % number) for number in range(1000)]
    again = [Candidate(B, b"/b"), Candidate(B, b"/b"), Note(B, "not found on /")]
    script = Script(Source.SCAN, *alike, *again, Note(A, "not found on /"))
    outcome = engine.resolve([A, B], [script], prove)
    few = outcome.unresolved[A].tried
    assert len(few) < 20
    assert few[0] == Tried(
        Source.SCAN, "/a0 may be another file, as the kernel shows the same of several"
    )
    assert few[-1] == Tried(Source.SCAN, "not found on /")
    assert outcome.unresolved[B].why == "scan: /b is gone; scan: not found on /"


class Held:
    """A resolver with an open file while it answers."""

    source = Source.SCAN

    def __init__(self, answers):
        self.open = self.opened = 0
        self.answers = answers

    def __call__(self, _wanted):
        self.open += 1
        self.opened += 1
        try:
            yield from self._inside()
        finally:
            self.open -= 1

    def _inside(self):
        yield from self.answers


def test_a_resolver_is_closed_when_the_time_is_up_and_when_a_proof_fails():
    """Not some time later: it may hold mounts that others want to unmount, or threads."""
    held = Held([Note(A, "one"), Note(A, "two")])
    outcome = engine.resolve([A], [held], proof({})[0], over=lambda: held.opened > 0)
    assert (held.open, outcome.cut) == (0, 1)

    def crash(_identity, _path):
        raise MemoryError

    kept = []
    held = Held([Candidate(A, b"/a")])
    try:
        engine.resolve([A], [held], crash)
    except MemoryError as error:
        kept.append(error)  # with its frames, which would keep the generator
    assert (held.open, len(kept)) == (0, 1)


def test_a_resolver_may_be_any_iterator():
    class Plain:
        source = Source.STORED

        def __call__(self, _wanted):
            return iter([Candidate(A, b"/a")])

    assert engine.resolve([A], [Plain()], proof({A: [b"/a"]})[0]).resolved[A].path == b"/a"


def test_how_many_have_no_path_for_lack_of_time():
    prove, asked = proof({A: [b"/a"]})
    script = Script(Source.STORED, Candidate(A, b"/a"), Deleted(B), Candidate(C, b"/c"))
    outcome = engine.resolve(EVERYONE, [script], prove, over=lambda: len(asked) >= 2)
    assert {i: why.cut for i, why in outcome.unresolved.items()} == {B: False, C: True}
    assert outcome.cut == 1
    whole = engine.resolve(EVERYONE, [script], prove)
    assert whole.cut == 0


def test_no_resolver_is_called_after_the_time_limit():
    never = Script(Source.STORED, Candidate(A, b"/a"))
    outcome = engine.resolve([A], [never], proof({A: [b"/a"]})[0], over=lambda: True)
    assert (never.saw, outcome.cut) == ([], 1)


def test_earlier_tries_are_in_the_reasons():
    prove, _ = proof({B: [b"/b"]})
    before = {A: [Tried(Source.HANDLE, "no name")], B: [Tried(Source.HANDLE, "no name")]}
    script = Script(Source.SCAN, Candidate(B, b"/b"), Note(A, "not found"))
    outcome = engine.resolve(before, [script], prove)
    assert outcome.resolved[B] == Resolved(B, b"/b", Source.SCAN)
    tried = (Tried(Source.HANDLE, "no name"), Tried(Source.SCAN, "not found"))
    assert outcome.unresolved == {A: Unresolved(A, tried)}
    assert before[A] == [Tried(Source.HANDLE, "no name")], "the caller's stays as it is"
