"""The service pushes at an interval, and is not delayed by a server that does not answer."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time

from irmapdb.node import unit
from tests.support.cli import irmapdb
from tests.support.features import require_root
from tests.support.fleet_rows import assert_same, server_rows, source_rows
from tests.support.hook import CHECKOUT

_WAIT_S = 120.0


class _Service:
    """`irmapdb warm` that finds no container, and pushes the databases of its directory."""

    def __init__(self, directory, url):
        self.run = directory / "run"
        self.databases = directory / "databases"
        self.databases.mkdir(mode=0o700, exist_ok=True)
        self.config = directory / "warm.toml"
        self.config.write_text(
            f'[warm]\ndirectory = "{self.databases}"\nshare = 8\nkeep-gone = "9000d"\n'
            f'[fleet]\nurl = "{url}"\ninterval = 0.2\nnode = "one"\n'
        )
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "irmapdb", "warm", "--interval", "0.2"),
                *("--cgroup", "/absent*", "--run-dir", self.run, "--config", self.config),
            ],
            cwd=CHECKOUT,
            stderr=subprocess.DEVNULL,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        assert self.process.wait(_WAIT_S) == 0

    def status(self):
        try:
            return json.loads((self.run / "status.json").read_text())
        except FileNotFoundError:
            return {"push": {"pushed_at": None, "problem": ""}, "looks": 0}

    def wait_for(self, is_so):
        end_s = time.monotonic() + _WAIT_S
        while not is_so(self.status()):
            assert self.process.poll() is None, "the service has ended"
            assert time.monotonic() < end_s, self.status()
            time.sleep(0.05)


def _is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return False


def test_the_service_pushes_again_and_again(url, maker, tmp_path):
    require_root()
    with _Service(tmp_path, url) as service:
        path = maker.make(service.databases / "one.db")
        service.wait_for(lambda status: status["push"]["pushed_at"] is not None)
        begun_s = time.time()
        maker.add(path)
        service.wait_for(lambda status: (status["push"]["pushed_at"] or 0) > begun_s)
        service.wait_for(lambda _: len(server_rows(url)["run"]) == 3)
        assert_same(server_rows(url), source_rows({"one": [path]}))
        done = irmapdb("warm", "--status", "--run-dir", service.run)
        assert "last push: " in done.out


def test_a_server_that_does_not_answer_delays_no_look(tmp_path, maker):
    require_root()
    directory = tmp_path / "socket"
    directory.mkdir()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(directory / ".s.PGSQL.5432"))
        silent.listen()
        silent.settimeout(_WAIT_S)
        with _Service(tmp_path, f"postgresql://me@/fleet?host={directory}") as service:
            maker.make(service.databases / "one.db")
            client, _ = silent.accept()
            looks = service.status()["looks"]
            service.wait_for(lambda status: status["looks"] > looks + 3)
            children = subprocess.run(
                ["ps", "-o", "pid=", "--ppid", str(service.process.pid)],
                stdout=subprocess.PIPE,
                text=True,
                check=False,
            ).stdout.split()
    client.close()
    end_s = time.monotonic() + _WAIT_S
    while any(map(_is_alive, children)):
        assert time.monotonic() < end_s, "a child outlives the service"
        time.sleep(0.05)


def test_the_status_has_the_problem(tmp_path):
    require_root()
    with _Service(tmp_path, f"postgresql://me@/fleet?host={tmp_path}") as service:
        service.wait_for(lambda status: "check that it runs" in status["push"]["problem"])


def test_the_unit_may_reach_a_server_only_if_one_is_configured(tmp_path):
    with_server = unit.unit_text(["/bin/true"], tmp_path, with_server=True)
    assert "IPAddressDeny" not in with_server
    assert "AF_INET" in with_server
    assert "IPAddressDeny=any" in unit.unit_text(["/bin/true"], tmp_path)
