"""The service as a process: it starts, looks, and ends when it is told to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.support.hook import CHECKOUT

WAIT_S = 60.0


class Warm:
    """`irmapdb warm` in a process of its own."""

    def __init__(self, tmp_path, *arguments):
        config = tmp_path / "irmapdb.toml"
        config.write_text(f'[warm]\ndirectory = "{tmp_path}/databases"\nshare = 8\n')
        self.run = tmp_path / "run"
        options = ["--run-dir", self.run, "--config", config, "--cgroup", "/irmapdb-*"]
        command = [sys.executable, "-m", "irmapdb", "warm", *options, "--interval", "0.2"]
        self.process = subprocess.Popen([*command, *arguments], cwd=CHECKOUT)

    def containers(self):
        try:
            return json.loads((self.run / "status.json").read_text())["containers"]
        except FileNotFoundError:
            return []

    def wait_for(self, is_so):
        deadline_s = time.monotonic() + WAIT_S
        while not is_so(self.containers()):
            assert self.process.poll() is None, "the service has ended"
            assert time.monotonic() < deadline_s, self.containers()
            time.sleep(0.02)
        return self.containers()

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(WAIT_S)


@pytest.fixture
def warm(tmp_path):
    service = Warm(tmp_path)
    yield service
    service.end(signal.SIGKILL)


def test_it_follows_what_the_containers_watch(node, warm):
    container = node.container()
    container.add_inotify("/srv/app/file-0")
    warm.wait_for(lambda seen: [one["resolved"] for one in seen] == [1])
    container.add_inotify("/srv/app/file-1")
    warm.wait_for(lambda seen: [one["resolved"] for one in seen] == [2])
    node.end(container)
    warm.wait_for(lambda seen: not seen)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_it_ends_when_it_is_told_to(node, warm, number):
    node.container().add_inotify("/srv/app/file-0")
    warm.wait_for(lambda seen: [one["resolved"] for one in seen] == [1])
    assert warm.end(number) == 0
    assert not [name for name in os.listdir(warm.run) if name.startswith("work-")]
