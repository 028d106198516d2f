"""Not one wrong path: random trees and changes, beside a model that the test keeps.

The model is a tree of plain objects. Each operation is done to it and to the real tree.
The objects have the names of each inode. The test asks neither the filesystem nor irmapdb.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from irmapdb.checkpoint import steps
from irmapdb.checkpoint.steps import FreezeOptions, StepOptions
from irmapdb.checkpoint.transaction import StepReport
from irmapdb.config import Config
from irmapdb.image import cache
from irmapdb.model import InodeKey
from irmapdb.store.database import Store
from tests.support.area import PLACES, MountArea
from tests.support.filesystems import drop_caches
from tests.support.watcher import Watcher

_ROUNDS = int(os.environ.get("IRMAPDB_RANDOM_ROUNDS", "25"))
_CHANGES_A_ROUND = 10
_NAMES = [b"a", b"b", b"c d", b"caf\xe9", b"x\ny", b"z (deleted)", b"\\134", b"l" * 200]

# squashfs and erofs cannot change; a FUSE server gives inode numbers of its own on each lookup.
_KINDS = [kind for kind in PLACES if kind not in {"squashfs", "erofs", "fuse"}]

_NO_INDEX = {"overlay-lower", "overlay-two-filesystems", "overlay-xino"}
_ALIASES = {"bind": ["content"], "btrfs-subvol-mount": ["btrfs/sub"]}


class Node:
    """An inode: a directory has children, a file may be the child of several."""

    def __init__(self, *, directory: bool) -> None:
        self.children: dict[bytes, Node] | None = {} if directory else None


class Tree:
    """The truth about everything below one directory."""

    def __init__(self, top: Path, *aliases: Path) -> None:
        self.top = os.fsencode(top)
        self.tops = [self.top, *map(os.fsencode, aliases)]
        """Where else the same tree can be seen: further mounts of it."""
        self.root = self._read(self.top, {})

    def _read(self, path: bytes, seen: dict[int, Node]) -> Node:
        status = os.lstat(path)
        directory = os.path.isdir(path)
        node = Node(directory=directory) if directory else seen.get(status.st_ino)
        if node is None:
            node = seen[status.st_ino] = Node(directory=False)
        if node.children is not None:
            for name in os.listdir(path):
                if not os.path.ismount(path + b"/" + name):
                    node.children[name] = self._read(path + b"/" + name, seen)
        return node

    def walk(self) -> Iterator[tuple[bytes, Node, Node | None, bytes]]:
        """Every (path, node, parent, name)."""
        pending: list[tuple[bytes, Node, Node | None, bytes]] = [(self.top, self.root, None, b"")]
        while pending:
            here = pending.pop()
            yield here
            path, node, _, _ = here
            for name, child in (node.children or {}).items():
                pending.append((path + b"/" + name, child, node, name))

    def names(self, wanted: Node) -> set[bytes]:
        below = [path[len(self.top) :] for path, node, _, _ in self.walk() if node is wanted]
        return {top + path for top in self.tops for path in below}


class Gardener:
    """Does the same to the real tree and to the truth."""

    def __init__(self, tree: Tree, chance: random.Random) -> None:
        self.tree = tree
        self._chance = chance
        self.done = 0

    def change(self) -> None:
        act = self._chance.choice(
            [self._make, self._rename, self._rename, self._swap, self._link, self._remove,
             self._write]
        )  # fmt: skip
        try:
            act()
            self.done += 1
        except OSError:
            return  # EXDEV, ENOTEMPTY, EBUSY, or nothing there to do it to: nothing happened

    def _pick(self, *, directory: bool | None = None) -> tuple[bytes, Node, Node | None, bytes]:
        found = [
            one
            for one in self.tree.walk()
            if directory is None or (one[1].children is not None) == directory
        ]
        if not found:
            raise FileNotFoundError("no file is left")
        return self._chance.choice(found)

    def _new_place(self) -> tuple[bytes, dict[bytes, Node], bytes]:
        path, node, _, _ = self._pick(directory=True)
        assert node.children is not None
        name = self._chance.choice(_NAMES) + str(self._chance.randrange(30)).encode()
        return path + b"/" + name, node.children, name

    def _make(self) -> None:
        path, children, name = self._new_place()
        if name in children:
            return
        if self._chance.random() < 0.3:
            os.mkdir(path)
            children[name] = Node(directory=True)
        else:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            children[name] = Node(directory=False)

    def _rename(self) -> None:
        path, node, parent, name = self._pick()
        target, children, new = self._new_place()
        if parent is None or children.get(new) is node:
            return  # the top; or two names of one file, of which rename(2) removes none
        os.rename(path, target)
        assert parent.children is not None
        del parent.children[name]
        children[new] = node

    def _swap(self) -> None:
        path, node, parent, name = self._pick(directory=False)
        other, other_node, other_parent, other_name = self._pick(directory=False)
        spare = self.tree.top + b"/spare"
        if node is other_node:
            return
        os.rename(path, spare)
        os.rename(other, path)
        os.rename(spare, other)
        assert parent is not None
        assert parent.children is not None
        assert other_parent is not None
        assert other_parent.children is not None
        parent.children[name], other_parent.children[other_name] = other_node, node

    def _link(self) -> None:
        path, node, _, _ = self._pick(directory=False)
        target, children, name = self._new_place()
        if name in children:
            return
        os.link(path, target)
        children[name] = node

    def _remove(self) -> None:
        path, node, parent, name = self._pick()
        if parent is None:
            return
        if node.children is None:
            os.unlink(path)
        else:
            os.rmdir(path)
        assert parent.children is not None
        del parent.children[name]

    def _write(self) -> None:
        path, _, _, _ = self._pick(directory=False)
        with open(path, "ab") as file:  # on overlayfs, a copy-up
            file.write(b"more")


def _check(
    report: StepReport, tree: Tree, watched: dict[int, Node], below: set[Node], hint: str
) -> None:
    seen = {row.watch.wd: row for row in report.watches}
    for wd, node in watched.items():
        names, row = tree.names(node), seen.get(wd)
        if node in below and len(names) > 1 and row is not None and row.path is None:
            continue
        if row is None:
            assert not names, f"{hint}: the watch of {names} is gone"
        elif row.path is None:
            assert not names, f"{hint}: {row.why} — but it is {names}"
        else:
            assert row.path in names, f"{hint}: {row.path!r} is wrong, right is {names}"


def _check_written(
    report: StepReport, work: Path, tree: Tree, watched: dict[int, Node], kind: str, hint: str
) -> None:
    """Every further name that the database and CRIU's cache have is a true one as well."""
    names = {row.watch.identity: tree.names(watched[row.watch.wd]) for row in report.watches}
    with Store.open_readonly(work / "irmap.db") as store:
        for mapping in store.all_mappings():
            if mapping.identity in names and not mapping.stale:
                assert mapping.path in names[mapping.identity], (
                    f"{hint}: the database has {mapping}"
                )
    by_key: dict[InodeKey, set[bytes]] = {}
    for identity, true in names.items():
        by_key.setdefault(identity.key, set()).update(true)
    entries = cache.decode_cache((work / "irmap-cache").read_bytes(), "irmap-cache")
    for entry in entries:
        assert entry.path in by_key[entry.key], f"{hint}: irmap-cache has {entry}"
    if kind.partition("-")[0] not in {"btrfs", "overlay"}:  # where CRIU accepts every name
        best = {row.path for row in report.watches if row.path is not None}
        assert best <= {entry.path for entry in entries}, f"{hint}: irmap-cache lacks some"


@pytest.mark.slow
@pytest.mark.parametrize("kind", _KINDS)
def test_every_answer_is_true(area: MountArea, watcher: Watcher, tmp_path: Path, kind: str) -> None:
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    place = area.place(kind)
    tree = Tree(place.directory, *(area.path / name for name in _ALIASES.get(kind, ())))
    # Without an index, an overlay makes an inode of each name of such a file in a lower layer: a
    # watch goes with the name.
    broken = {node for _, node, _, _ in tree.walk() if len(tree.names(node)) > len(tree.tops)}
    unwatched = broken if kind in _NO_INDEX else set()
    # A file that comes from there and gets a second name looks the same.
    below = {node for _, node, _, _ in tree.walk()} if kind in _NO_INDEX else set()
    gardener = Gardener(tree, chance)
    while gardener.done < 30:
        gardener.change()
    work = tmp_path / "work"
    work.mkdir()
    options = StepOptions(
        watcher.pid,
        images_dir=work,
        scan_paths=(os.fsencode(place.mountpoint),),
        config=Config(hints=()),
    )
    watched: dict[int, Node] = {}
    for number in range(_ROUNDS):
        path, node, _, _ = chance.choice([one for one in tree.walk() if one[1] not in unwatched])
        watched[watcher.add_inotify(path).wd] = node
        for _ in range(_CHANGES_A_ROUND):
            gardener.change()
        if chance.random() < 0.2:
            drop_caches()
        if chance.random() < 0.5:
            report = steps.pre_dump(options)
        else:
            report = steps.dump(options, FreezeOptions())
        hint = f"seed {seed}, round {number}"
        _check(report, tree, watched, below, hint)
        _check_written(report, work, tree, watched, kind, hint)
    assert gardener.done > _ROUNDS * _CHANGES_A_ROUND // 3
