"""Containers of runc's on an overlay, and a service with directories of its own."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from irmapdb.config import Config, WarmConfig
from irmapdb.kernel.proc import procfs
from irmapdb.node.service import ServiceOptions
from tests.support import proc_tree
from tests.support.engine_host import Host
from tests.support.features import require_program, require_root
from tests.support.runc import Container, fill_rootfs
from tests.support.warm import OURS, Warm, write_hook

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tests.support.area import MountArea


@pytest.fixture(autouse=True)
def _root() -> None:
    require_root()


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in the place of /proc, with the tasks of the host."""
    directory = tmp_path / "proc"
    monkeypatch.setattr(procfs, "ROOT", str(directory))
    proc_tree.make_host(directory)
    return directory


@pytest.fixture
def host(proc: Path, tmp_path: Path) -> Host:
    return Host(proc, tmp_path / "host")


@dataclass
class Node:
    """Makes containers, each with an overlay of its own over one lower layer."""

    area: MountArea
    path: Path
    stack: ExitStack
    lower: Path
    count: int = 0
    roots: dict[str, Path] = field(default_factory=dict)
    """Where the root of each is mounted, by the id."""
    stacks: dict[str, ExitStack] = field(default_factory=dict)

    def container(self, binds: Mapping[Path, str] | None = None) -> Container:
        """One more; `binds` are directories to be seen in it."""
        self.count += 1
        base = self.lower.parent / f"upper-{self.count}"
        base.mkdir()
        made = self.area.overlay(f"overlay-{self.count}", lower=self.lower, upper_base=base)
        directory = self.path / f"runc-{self.count}"
        stack = self.stack.enter_context(ExitStack())
        container = stack.enter_context(Container(directory, made.mountpoint, binds or {}))
        self.stacks[container.id] = stack
        self.roots[container.id] = made.mountpoint
        return container

    def end(self, container: Container) -> None:
        """Delete a container."""
        self.stacks[container.id].close()

    def options(self, **rest: object) -> ServiceOptions:
        """Options of a service for the containers of this test alone."""
        warm = WarmConfig(directory=self.path / "databases", share=8.0)
        config = Config(warm=warm)
        values = {
            "cgroup": OURS,
            "run": self.path / "run",
            "config": config,
        } | rest
        return ServiceOptions(**values)  # type: ignore[arg-type]


@pytest.fixture
def warm(tmp_path: Path) -> Iterator[Warm]:
    """The service, which looks at the containers of this test five times a second."""
    service = Warm(tmp_path)
    try:
        yield service
    finally:
        service.end(signal.SIGKILL)


@pytest.fixture
def hook(tmp_path: Path) -> Path:
    """The script that CRIU executes, for that service, which it waits long for."""
    return write_hook(tmp_path, tmp_path / "run")


@pytest.fixture
def real_hook(tmp_path: Path) -> Path:
    """The script with the time limit that it has when it is installed."""
    return write_hook(tmp_path, tmp_path / "run", patient=False)


@pytest.fixture
def node(area: MountArea, tmp_path: Path) -> Iterator[Node]:
    require_program("runc")
    lower = area.ext4("layers", size_mib=64).mountpoint / "lower"
    fill_rootfs(lower)
    (lower / "srv" / "app").mkdir(parents=True)
    for index in range(10):
        (lower / "srv" / "app" / f"file-{index}").write_text("lower")
    with ExitStack() as stack:
        yield Node(area, tmp_path, stack, lower)
