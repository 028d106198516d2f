"""CRIU's decision as check models it: pure, from facts alone."""

from __future__ import annotations

import os
import subprocess

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from irmapdb.criu.check.decision import decide
from irmapdb.criu.check.facts import (
    CacheLook,
    Call,
    Facts,
    Found,
    HandleLook,
    Look,
    OverlayLook,
    SearchLook,
)
from irmapdb.criu.check.verdicts import CriuOutcome, Prediction, WatchVerdict
from irmapdb.criu.check.version import ASSUMED, CriuVersion, criu_version, parse_version
from irmapdb.errors import UsageError
from irmapdb.model import FileHandle, Identity

CRIU_41, CRIU_43 = CriuVersion(4, 1), CriuVersion(4, 3)
AS_IT_IS = Call(7, CRIU_41)
FORCED = Call(7, CRIU_41, force_irmap=True)
NEWER = Call(7, CRIU_43)

HANDLE = FileHandle(1, b"\1\2\3\4\5\6\7\10")
WATCHED = Identity(0x700000, 12, HANDLE)
FILE = Found(b"/srv/file", right=True)
MAYBE = Found(b"/srv/file", right=None)
OTHER = Found(b"/srv/other", right=False)
LINK = Found(b"/srv/link", right=True, symlink=True)
ELSEWHERE = SearchLook(b"/etc/hosts")
_NO_RESTORE = WatchVerdict.NO_RESTORE, CriuOutcome.NO_PATH
_NO_PATH = WatchVerdict.NO_PATH, CriuOutcome.NO_PATH
NAMED = HandleLook(opened=True, found=FILE)
NAMELESS = HandleLook(opened=True)
UNOPENED = HandleLook(opened=False, why_not="Stale file handle")
NOTHING = {"cache": CacheLook(), "scan": ()}


def facts(fstype: str | None = "ext4", **looks: object) -> Facts:
    return Facts(WATCHED, fstype, **looks)


@pytest.mark.parametrize(
    ("known", "call", "verdict", "outcome"),
    [
        (facts(handle=NAMED), FORCED, WatchVerdict.PATH, CriuOutcome.PATH),
        (
            facts("fuse", handle=HandleLook(opened=True, found=MAYBE)),
            AS_IT_IS,
            WatchVerdict.UNKNOWN,
            CriuOutcome.PATH,
        ),
        (
            facts("overlay", handle=UNOPENED, cache=CacheLook(MAYBE)),
            AS_IT_IS,
            WatchVerdict.UNKNOWN,
            CriuOutcome.PATH,
        ),
        (
            facts("overlay", handle=UNOPENED, overlay=OverlayLook((MAYBE,), 1000, 1500)),
            NEWER,
            WatchVerdict.UNKNOWN,
            CriuOutcome.PATH,
        ),
        (
            facts(handle=HandleLook(opened=True, found=OTHER)),
            AS_IT_IS,
            WatchVerdict.WRONG_PATH,
            CriuOutcome.WRONG_PATH,
        ),
        (
            facts(handle=NAMELESS, search=SearchLook()),
            AS_IT_IS,
            WatchVerdict.NO_PATH,
            CriuOutcome.NO_PATH,
        ),
        (facts("btrfs", handle=NAMELESS), AS_IT_IS, WatchVerdict.NO_PATH, CriuOutcome.NO_PATH),
        (facts("tmpfs", handle=NAMELESS), AS_IT_IS, WatchVerdict.FAILS, CriuOutcome.FAILS),
        (
            facts(handle=NAMELESS, cache=CacheLook(FILE)),
            FORCED,
            WatchVerdict.CACHE,
            CriuOutcome.PATH,
        ),
        (
            facts(handle=NAMELESS, cache=CacheLook(OTHER)),
            FORCED,
            WatchVerdict.WRONG_PATH,
            CriuOutcome.WRONG_PATH,
        ),
        (
            facts(handle=NAMELESS, cache=CacheLook(), scan=(FILE,)),
            FORCED,
            WatchVerdict.PATH,
            CriuOutcome.PATH,
        ),
        (
            facts("overlay", handle=UNOPENED, cache=CacheLook(), scan=(FILE, OTHER)),
            AS_IT_IS,
            WatchVerdict.WRONG_PATH,
            CriuOutcome.WRONG_PATH,
        ),
        (
            facts(
                "overlay",
                handle=UNOPENED,
                **NOTHING,
                search=SearchLook(b"/srv/file", acceptable=True),
            ),
            AS_IT_IS,
            WatchVerdict.OPTIONS,
            CriuOutcome.FAILS,
        ),
        (
            facts("overlay", handle=UNOPENED, **NOTHING, search=SearchLook(b"/srv/file")),
            AS_IT_IS,
            WatchVerdict.FAILS,
            CriuOutcome.FAILS,
        ),
        (facts("btrfs", handle=NAMELESS, **NOTHING), FORCED, WatchVerdict.FAILS, CriuOutcome.FAILS),
        (
            facts("overlay", handle=UNOPENED, overlay=OverlayLook((FILE,), 1000, 1500)),
            NEWER,
            WatchVerdict.WALK,
            CriuOutcome.PATH,
        ),
        (
            facts("overlay", handle=UNOPENED, overlay=OverlayLook((FILE, OTHER), 1000, 1500)),
            NEWER,
            WatchVerdict.WRONG_PATH,
            CriuOutcome.WRONG_PATH,
        ),
        (facts(handle=NAMELESS, search=SearchLook(), own_mounts=False), AS_IT_IS, *_NO_RESTORE),
        (facts("fuse.sshfs", handle=NAMELESS, search=SearchLook()), AS_IT_IS, *_NO_RESTORE),
        (facts(handle=HandleLook(opened=True, deleted=True)), AS_IT_IS, *_NO_RESTORE),
        (facts(handle=HandleLook(opened=True, symlink=True)), AS_IT_IS, *_NO_PATH),
        (facts(handle=HandleLook(opened=True, too_long=True)), AS_IT_IS, *_NO_PATH),
        (facts(handle=HandleLook(opened=True, mounted=ELSEWHERE)), AS_IT_IS, *_NO_PATH),
        (
            facts(handle=HandleLook(opened=True, deleted=True, mounted=ELSEWHERE)),
            AS_IT_IS,
            *_NO_RESTORE,
        ),
        (
            facts("tmpfs", handle=HandleLook(opened=True, mounted=ELSEWHERE)),
            AS_IT_IS,
            WatchVerdict.FAILS,
            CriuOutcome.FAILS,
        ),
        (
            facts("overlay", handle=UNOPENED, overlay=OverlayLook((), 9, 9), search=ELSEWHERE),
            NEWER,
            *_NO_RESTORE,
        ),
        (
            facts("overlay", handle=UNOPENED, overlay=OverlayLook((LINK,), 9, 9)),
            NEWER,
            WatchVerdict.SYMLINK,
            CriuOutcome.PATH,
        ),
        (
            facts(handle=NAMELESS, cache=CacheLook(LINK)),
            FORCED,
            WatchVerdict.SYMLINK,
            CriuOutcome.PATH,
        ),
        (
            facts("overlay", handle=UNOPENED, **NOTHING, search=SearchLook(gave_up="late")),
            AS_IT_IS,
            WatchVerdict.UNKNOWN,
            CriuOutcome.FAILS,
        ),
        (facts(unseen=("no", "stop")), AS_IT_IS, WatchVerdict.UNKNOWN, CriuOutcome.UNKNOWN),
        (facts(hopeless=("no", "stop")), AS_IT_IS, WatchVerdict.FAILS, CriuOutcome.FAILS),
        (
            Facts(WATCHED._replace(handle=None), "overlay"),
            FORCED,
            WatchVerdict.FAILS,
            CriuOutcome.FAILS,
        ),
    ],
)
def test_verdict(known: Facts, call: Call, verdict: WatchVerdict, outcome: CriuOutcome) -> None:
    said = decide(known, call)
    assert isinstance(said, Prediction)
    assert (said.verdict, said.outcome) == (verdict, outcome)


@pytest.mark.parametrize(
    ("known", "call", "look"),
    [
        (facts(), AS_IT_IS, Look.HANDLE),
        # A cold file of which CRIU asks no more: its path must not be looked up by us either.
        (facts(handle=NAMELESS), AS_IT_IS, Look.SEARCH),
        (facts(handle=NAMELESS), FORCED, Look.CACHE),
        (facts("overlay", handle=UNOPENED), AS_IT_IS, Look.CACHE),
        (facts("overlay", handle=UNOPENED), NEWER, Look.OVERLAY),
        (facts("sysfs", handle=UNOPENED), NEWER, Look.CACHE),
        (facts("overlay", handle=UNOPENED, overlay=OverlayLook((), 9, 9)), NEWER, Look.SEARCH),
        (
            facts("overlay", handle=UNOPENED, overlay=OverlayLook((), 9, 9)),
            NEWER._replace(force_irmap=True),
            Look.CACHE,
        ),
        (facts(handle=NAMELESS, cache=CacheLook()), FORCED, Look.SCAN),
        (facts(handle=NAMELESS, **NOTHING), FORCED, Look.SEARCH),
    ],
)
def test_next_look(known: Facts, call: Call, look: Look) -> None:
    assert decide(known, call) is look


founds = st.builds(
    Found, st.sampled_from([b"/", b"/a", b"/b"]), st.booleans(), symlink=st.booleans()
)
anything = st.builds(
    Facts,
    st.sampled_from([WATCHED, WATCHED._replace(handle=None)]),
    st.sampled_from([None, "ext4", "btrfs", "tmpfs", "overlay", "sysfs"]),
    own_mounts=st.booleans(),
    handle=st.one_of(
        st.builds(
            HandleLook,
            st.just(value=True),
            st.none() | founds,
            st.booleans(),
            st.just(""),
            st.none() | st.builds(SearchLook, st.just(b"/m"), mntns=st.sampled_from([0, 7])),
            symlink=st.booleans(),
            too_long=st.booleans(),
        ),
        st.just(UNOPENED),
    ),
    overlay=st.builds(
        OverlayLook, st.lists(founds, max_size=2).map(tuple), st.just(1000), st.just(1500)
    ),
    cache=st.builds(CacheLook, st.none() | founds, st.sampled_from([(), (b"/c",)])),
    scan=st.lists(founds, max_size=2).map(tuple),
    search=st.builds(
        SearchLook,
        st.none() | st.just(b"/d"),
        st.booleans(),
        st.sampled_from(["", "too late"]),
        st.booleans(),
        st.booleans(),
    ),
)
calls = st.builds(Call, st.just(7), st.sampled_from([CRIU_41, CRIU_43]), st.booleans())
FIELDS = {
    Look.HANDLE: "handle",
    Look.OVERLAY: "overlay",
    Look.CACHE: "cache",
    Look.SCAN: "scan",
    Look.SEARCH: "search",
}


@given(anything, calls)
def test_every_decision_ends_and_looks_only_forward(everything: Facts, call: Call) -> None:
    """Each look that is asked for comes after those before it, and the answer needs no other."""
    known = Facts(everything.identity, everything.fstype)._replace(own_mounts=everything.own_mounts)
    taken: list[Look] = []
    step = decide(known, call)
    while isinstance(step, Look):
        assert not taken or step > taken[-1]
        taken.append(step)
        known = known._replace(**{FIELDS[step]: getattr(everything, FIELDS[step])})
        step = decide(known, call)
    assert step == decide(everything, call)
    linked = step.verdict is WatchVerdict.SYMLINK
    assert (step.verdict.right or linked) == (step.outcome is CriuOutcome.PATH)
    assert (step.verdict is WatchVerdict.WRONG_PATH) == (step.outcome is CriuOutcome.WRONG_PATH)
    assert everything.own_mounts or step.verdict is not WatchVerdict.NO_PATH
    # Each bad verdict has advice.
    assert step.why
    assert step.verdict.right or step.advice
    if Look.SEARCH in taken:
        # To give advice changes no outcome: CRIU does not search.
        anywhere = known._replace(search=SearchLook(b"/e", acceptable=True))
        assert decide(anywhere, call).outcome is step.outcome


def test_advice_names_the_command_and_the_option() -> None:
    found = SearchLook(b"/srv/a file\n", acceptable=True)
    call = Call(4711, CRIU_41, work_dir=b"/var/ckpt")
    said = decide(facts("overlay", handle=UNOPENED, **NOTHING, search=found), call)
    assert isinstance(said, Prediction)
    assert "irmapdb pre-dump -t 4711 -W /var/ckpt" in said.advice
    assert "--irmap-scan-path" in said.advice
    assert "\n" not in said.advice
    cold = decide(facts(handle=NAMELESS, search=found._replace(hinted=True)), call)
    assert isinstance(cold, Prediction)
    assert cold.advice.endswith("or call CRIU with --force-irmap")


@pytest.mark.parametrize(
    ("text", "numbers"), [("4.2", (4, 2)), ("v4.3-rc1", (4, 3)), ("4.1.1", (4, 1))]
)
def test_version_as_people_write_it(text: str, numbers: tuple[int, int]) -> None:
    assert parse_version(text)[:2] == numbers


@pytest.mark.parametrize("text", ["", "four", "4"])
def test_a_text_that_is_no_version(text: str) -> None:
    with pytest.raises(UsageError, match="not a version"):
        parse_version(text)


@pytest.mark.parametrize(
    ("script", "version"),
    [
        ("echo Version: 4.3; echo GitID: v4.3", (4, 3)),
        ("echo Version: 3.17.1", (3, 17)),
        ("echo nonsense", ASSUMED[:2]),
        ("exit 1", ASSUMED[:2]),
    ],
)
def test_version_as_criu_says_it(script: str, version: tuple[int, int], tmp_path) -> None:
    program = tmp_path / "criu"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    said = criu_version(str(program))
    assert said[:2] == version
    assert ("assumed" in said.source) == (script in {"echo nonsense", "exit 1"})


def test_no_criu_at_all(tmp_path) -> None:
    assert criu_version(str(tmp_path / "criu")) is ASSUMED


@given(path=st.binary().map(lambda name: b"/" + name.replace(b"\0", b"")))
@example(path="/\x80".encode())
@example(path=b"/it's \xff\\")
@settings(max_examples=settings.default.max_examples // 3)
def test_the_path_to_scan_can_be_given_to_a_shell(path: bytes) -> None:
    known = facts(handle=NAMELESS, cache=CacheLook(), scan=(), search=SearchLook(path))
    advice = decide(known, FORCED).advice
    option = advice[advice.index("--irmap-scan-path ") :].splitlines()
    assert len(option) == 1
    said = subprocess.run(
        ["bash", "-c", f"printf %s {option[0]}"],
        capture_output=True,
        check=True,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    ).stdout
    assert said == b"--irmap-scan-path" + path
