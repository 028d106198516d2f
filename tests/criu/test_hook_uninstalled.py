"""`irmapdb hook --uninstall` while CRIU dumps: CRIU has read the name of the script already."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from irmapdb.criu import hook_script
from irmapdb.errors import FileError
from tests.support.hook import hook_program

if TYPE_CHECKING:
    from tests.support.criu import CriuRun

WAIT_S = 60


class Dump:
    """A dump that calls the hook, and then an own script, which lasts until `go`."""

    def __init__(self, criu, target, tmp_path) -> None:
        self.script = tmp_path / "libexec" / "irmapdb-hook"
        self.file = tmp_path / "runc.conf"
        hook_script.write_script(self.script, hook_program(tmp_path), self.file)
        self._go, begun = tmp_path / "go", tmp_path / "begun"
        slow = tmp_path / "slow"
        slow.write_text(f"#!/bin/sh\n: >{begun}\nwhile [ ! -e {self._go} ]; do sleep 0.05; done\n")
        slow.chmod(0o755)
        self.file.write_text(f"action-script {self.script}\naction-script {slow}\n")
        self._done: list[CriuRun] = []
        options = ["--config", os.fspath(self.file)]
        self._thread = threading.Thread(
            target=lambda: self._done.append(
                criu.dump(target.pid, tmp_path / "images", options=options)
            )
        )
        self._thread.start()
        end_s = time.monotonic() + WAIT_S
        while not begun.exists():
            assert time.monotonic() < end_s
            time.sleep(0.01)
        self.file.write_text("")  # as the uninstallation does first

    def go(self) -> None:
        self._go.touch()

    def end(self) -> CriuRun:
        self.go()
        self._thread.join()
        return self._done[0]


@pytest.fixture
def dump(criu, target, tmp_path):
    watched = tmp_path / "watched"
    watched.touch()
    target.add_inotify(watched)
    made = Dump(criu, target, tmp_path)
    yield made
    made.end()


def test_the_script_is_removed_after_the_dump(dump):
    removed = []
    thread = threading.Thread(
        target=lambda: removed.append(hook_script.release_script(dump.script, dump.file))
    )
    thread.start()
    dump.go()
    thread.join()
    assert dump.end().ok
    assert removed == [True]
    assert not dump.script.exists()


def test_the_script_stays_if_the_dump_takes_too_long(dump, monkeypatch):
    monkeypatch.setattr(hook_script, "_CRIU_S", 0.1)
    with pytest.raises(FileError, match="may execute it"):
        hook_script.release_script(dump.script, dump.file)
    assert dump.script.exists()
    assert dump.end().ok
