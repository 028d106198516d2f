"""The systemd unit: its commands, and that --uninstall leaves no file."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from irmapdb.errors import FileError
from irmapdb.node import unit
from tests.support.cli import irmapdb
from tests.support.features import require_program
from tests.support.hook import CHECKOUT
from tests.support.warm import OURS, Asked


def test_install_and_its_undo(tmp_path):
    done = irmapdb("warm", "--install", "--cgroup", "/kube pods*", "--unit-dir", tmp_path)
    assert done.code == 0, done.said
    text = (tmp_path / unit.UNIT_NAME).read_text()
    assert "Type=notify" in text
    by_hand = "start the service by hand: `irmapdb warm`" in done.err
    booted = Path("/run/systemd/system").is_dir() and shutil.which("systemctl")
    assert by_hand != bool(booted)
    (command,) = [line for line in text.splitlines() if line.startswith("ExecStart=")]
    words = shlex.split(command.removeprefix("ExecStart="))
    assert words == [sys.executable, "-m", "irmapdb", "warm", "--cgroup", "/kube pods*"]
    assert irmapdb("warm", "--install", "--unit-dir", tmp_path).code == 0  # once more
    assert irmapdb("warm", "--uninstall", "--unit-dir", tmp_path).code == 0
    assert list(tmp_path.iterdir()) == []
    assert "no unit" in irmapdb("warm", "--uninstall", "--unit-dir", tmp_path).out


def test_a_unit_of_others_is_left_alone(tmp_path):
    path = tmp_path / unit.UNIT_NAME
    path.write_text("[Service]\nExecStart=/bin/true\n")
    for option in ("--install", "--uninstall"):
        assert irmapdb("warm", option, "--unit-dir", tmp_path).code == 1
    assert path.read_text() == "[Service]\nExecStart=/bin/true\n"
    with pytest.raises(FileError, match="not made by irmapdb"):
        unit.install(["/bin/true"], tmp_path, tmp_path)


def test_systemd_analyze_accepts_the_unit(tmp_path):
    require_program("systemd-analyze", package="systemd")
    unit.install([sys.executable, "-m", "irmapdb", "warm"], tmp_path, tmp_path)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / unit.UNIT_NAME],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_words_with_special_characters_of_systemd():
    text = unit.unit_text(["/a b/python", "100%", "$HOME", 'say "x"', "back\\slash"], CHECKOUT)
    assert 'ExecStart="/a b/python" 100%% $$HOME "say \\"x\\"" "back\\\\slash"\n' in text


def test_it_works_with_the_capabilities_and_the_mounts_of_the_unit(node, warm, hook, tmp_path):
    require_program("setpriv", package="util-linux")
    container = node.container()
    container.add_inotify("/srv/app/file-0")
    warm.end(signal.SIGKILL)
    kept = ",".join("+" + one.removeprefix("CAP_").lower() for one in unit.CAPABILITIES)
    command = [sys.executable, "-m", "irmapdb", "warm", "--interval", "0.2", "--cgroup", OURS]
    # A mount namespace in which only these two directories can be written.
    script = """
        for path in "$1" "$2"; do mkdir -p -m 700 "$path"; mount --bind "$path" "$path"; done
        mount -o remount,bind,ro / && shift 2
        exec setpriv --bounding-set="-all,$KEPT" --no-new-privs "$@"
    """
    outer = ["unshare", "--mount", "--propagation", "slave", "sh", "-ec", script, "sh"]
    places = [warm.run, tmp_path / "databases"]
    warm.process = subprocess.Popen(
        [*outer, *places, *command, *warm.options],
        cwd=CHECKOUT,
        env={**os.environ, "KEPT": kept},
    )
    warm.wait_ready(1)
    asked = Asked.ask(hook, container.pid, tmp_path / "work")
    assert (asked.alone, asked.paths) == (False, [b"/srv/app/file-0"]), asked.said
    assert warm.end(signal.SIGTERM) == 0


def test_systemd_gets_the_notifications(node, tmp_path, warm):
    warm.end(signal.SIGKILL)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(60)
        os.environ["NOTIFY_SOCKET"] = str(tmp_path / "notify")
        try:
            warm.start()
        finally:
            del os.environ["NOTIFY_SOCKET"]
        assert listener.recv(100) == b"READY=1"
        assert warm.end() == 0
        assert listener.recv(100) == b"STOPPING=1"
