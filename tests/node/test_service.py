"""The service as a process: it starts, looks, and ends when it is told to."""

from __future__ import annotations

import os
import signal

import pytest


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
