"""One resolver asked by itself, with the engine's proof."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from irmapdb.kernel.proof import disproof
from irmapdb.kernel.root import open_root
from irmapdb.model import FileHandle
from irmapdb.resolve import engine
from tests.support.kernel_paths import open_descriptors, watched_identity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from irmapdb.kernel.root import Root
    from irmapdb.model import Identity, Unresolved
    from tests.support.watcher import Watcher

NOBODY_HAS_IT = FileHandle(1, b"\xff" * 8)


@pytest.fixture
def root() -> Iterator[Root]:
    """Our own."""
    with open_root(os.getpid()) as opened:
        yield opened


@pytest.fixture
def watched(watcher: Watcher) -> Callable[..., Identity]:
    """Watch a path; returns its identity."""

    def watch(path: Path, **more: Any) -> Identity:  # noqa: ANN401 - as add_inotify
        return watched_identity(watcher, watcher.add_inotify(path, **more))

    return watch


def ask(root: Root, resolver: engine.Resolver, *identities: Identity) -> engine.Resolution:
    """The outcome; no descriptor is left open."""
    root.renew()
    before = open_descriptors()
    outcome = engine.resolve(identities, [resolver], lambda i, path: disproof(root, i, path))
    root.superblocks.close()
    assert open_descriptors() == before
    return outcome


def path_by(root: Root, resolver: engine.Resolver, identity: Identity) -> bytes:
    """The path of an identity that must be found."""
    outcome = ask(root, resolver, identity)
    assert outcome.unresolved == {}
    return outcome.resolved[identity].path


def why_not(root: Root, resolver: engine.Resolver, identity: Identity) -> Unresolved:
    """The notes for an identity that must not be found."""
    outcome = ask(root, resolver, identity)
    assert outcome.resolved == {}
    return outcome.unresolved[identity]
