"""The systemd unit of a task, by the text of /proc/PID/cgroup."""

from __future__ import annotations

import pytest

from irmapdb.kernel.proc.units import cgroup_of, unit_of

_HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        ("/system.slice/ssh.service", "ssh.service"),
        ("/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service"),
        ("/user.slice/user-1000.slice/session-3.scope", "session-3.scope"),
        (
            "/user.slice/user-1000.slice/user@1000.service/app.slice/code.service",
            "user@1000.service/code.service",
        ),
        (
            "/user.slice/user-1000.slice/user@1000.service/init.scope",
            "user@1000.service/init.scope",
        ),
        # A tenant's, with the name of another unit.
        ("/system.slice/tenant.service/ssh.service", "tenant.service/ssh.service"),
        # The service has made cgroups of its own (Delegate=).
        ("/system.slice/docker.service/worker/3", "docker.service"),
        ("/system.slice/_cgroup.service", "cgroup.service"),
        (f"/machine.slice/libpod-{_HEX}.scope/container", f"libpod-{_HEX}.scope"),
        ("/system.slice/dev-disk-by\\x2duuid.swap", "dev-disk-by\\x2duuid.swap"),
        ("/../../kubepods.slice/x.scope", "x.scope"),
        ("/system.slice", None),
        ("/", None),
        (f"/docker/{_HEX}", None),
    ],
)
def test_the_unit_and_those_that_it_is_in(path: str, unit: str | None) -> None:
    assert unit_of({"": path}) == unit
    assert unit_of({"": "/", "name=systemd": path, "memory": "/a.service"}) == unit
    assert unit_of({"memory": path}) is None, "systemd names no unit there"


def test_the_path_of_the_cgroup() -> None:
    assert cgroup_of({"": "/a/b", "memory": "/a/much/longer"}) == "/a/b"
    assert cgroup_of({"": "/", "pids": "/a", "memory": "/a/longer"}) == "/a/longer"
    assert cgroup_of({"": "/", "pids": "/"}) is None
    assert cgroup_of({}) is None, "the task is gone"
