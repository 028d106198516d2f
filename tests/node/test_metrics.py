"""The metrics of a node with real containers, and the service that hostile clients ask for them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import time
import urllib.error
import urllib.request
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from irmapdb.config import Config, ListenAddress, MetricsConfig, WarmConfig, load_config
from irmapdb.criu import hook_runs
from irmapdb.errors import ConfigError, FileError
from irmapdb.image.magic import HEADER, STATS
from irmapdb.node import metrics, metrics_clients, unit
from irmapdb.node.look import look_around
from irmapdb.node.metrics import MetricsOptions, collect
from irmapdb.node.metrics_requests import open_listener
from irmapdb.node.service_faults import ask_service
from tests.support.cli import irmapdb
from tests.support.silent_fuse import SilentFuse
from tests.support.warm import OURS, WAIT_S, Asked, Warm

if TYPE_CHECKING:
    from collections.abc import Iterator

Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


def _samples(text: str) -> Samples:
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for one in family.samples:
            found.setdefault(one.name, {})[tuple(sorted(one.labels.items()))] = one.value
    return found


def _of(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get(f"irmapdb_{name}", {}).get(tuple(sorted(labels.items())))


class MetricsService(Warm):
    """The service with a socket for metrics."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "metrics.sock"
        super().__init__(directory)

    def start(self) -> None:
        config = self.directory / "warm.toml"
        if "[metrics]" not in config.read_text():
            with config.open("a") as file:
                file.write(f'[metrics]\nlisten = "{self.socket}"\n')
        super().start()

    def connect(self) -> socket.socket:
        until = time.monotonic() + 60
        while True:
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(60)
            try:
                client.connect(os.fspath(self.socket))
            except (FileNotFoundError, ConnectionRefusedError):
                client.close()
                assert time.monotonic() < until
                assert self.process.poll() is None
                time.sleep(0.02)
            else:
                return client

    def ask(self, request: bytes = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n") -> tuple[str, str]:
        """The head and the body of the answer."""
        with self.connect() as client:
            client.sendall(request)
            said = b""
            while part := client.recv(1 << 16):
                said += part
        head, _, body = said.decode().partition("\r\n\r\n")
        return head, body

    def samples(self) -> Samples:
        head, body = self.ask()
        assert head.startswith("HTTP/1.1 200 OK\r\n")
        assert "Content-Type: text/plain; version=" in head
        return _samples(body)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[MetricsService]:
    made = MetricsService(tmp_path)
    try:
        yield made
    finally:
        made.end(signal.SIGKILL)


def test_figures_of_a_container_are_those_of_the_kernel(node, service, hook, tmp_path):
    container = node.container()
    for number in range(3):
        container.add_inotify(f"/srv/app/file-{number}")
    container.open("/srv/app/file-9")
    container.add_inotify("/srv/app/file-9")
    (node.roots[container.id] / "srv/app/file-9").unlink()
    service.wait_for(lambda seen: [(one["watches"], one["resolved"]) for one in seen] == [(4, 3)])
    (known,) = service.containers()
    id_ = known["id"]
    before = service.samples()
    assert _of(before, "container_watches", container=id_) == 4
    assert _of(before, "container_resolved_watches", container=id_) == 3
    assert _of(before, "container_unresolved_watches", container=id_) == 1
    proved = _of(before, "container_last_proof_timestamp_seconds", container=id_)
    assert proved == pytest.approx(known["proved_at"])
    assert _of(before, "container_stale_paths", container=id_) == 0
    assert _of(before, "service_up") == 1
    assert _of(before, "containers") == 1
    (labels,) = before["irmapdb_container_info"]
    assert dict(labels)["container"] == id_
    # The prediction comes with a later answer.
    until = time.monotonic() + 60
    while _of(samples := service.samples(), "container_dump_fails", container=id_) is None:
        assert time.monotonic() < until
    verdicts = {
        dict(labels)["verdict"]: number
        for labels, number in samples["irmapdb_container_verdict_watches"].items()
    }
    assert sum(verdicts.values()) == 4
    # The script has its reply before the run is noted.
    asked = Asked.ask(hook, container.pid, tmp_path / "work")
    assert asked.code == 0
    until = time.monotonic() + 60
    while "irmapdb_hook_runs_total" not in (after := service.samples()):
        assert time.monotonic() < until
    runs = sum(
        number
        for labels, number in after["irmapdb_hook_runs_total"].items()
        if dict(labels)["by"] == "service"
    )
    assert runs == 1, asked
    assert _of(after, "service_answers_total", result="done") == 1
    assert _of(after, "hook_last_run_failed", container=id_) == 0
    assert _of(after, "hook_last_run_unresolved_watches", container=id_) == 1
    took_s = _of(after, "hook_last_run_seconds", container=id_)
    assert 0 < took_s < 60
    (run,) = hook_runs.read_runs(service.run).last
    assert (run.container, run.work) == (id_, os.fsencode(tmp_path / "work"))
    node.end(container)


def test_a_pause_is_counted_as_one(node, service, hook, tmp_path):
    container = node.container()
    container.add_inotify("/srv/app/file-0")
    service.wait_ready(1)
    os.kill(container.pid, signal.SIGSTOP)
    try:
        assert Asked.ask(hook, container.pid, tmp_path / "work").code == 0
        until = time.monotonic() + 60
        while not (found := service.samples().get("irmapdb_hook_paused_runs_total")):
            assert time.monotonic() < until
    finally:
        os.kill(container.pid, signal.SIGCONT)
    assert sum(found.values()) == 1


def test_an_http_client_reads_them_from_a_port(tmp_path):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    service = Warm.__new__(Warm)
    config = tmp_path / "port.toml"
    config.write_text(
        f'[warm]\ndirectory = "{tmp_path}/databases"\n[metrics]\nlisten = "127.0.0.1:{port}"\n'
    )
    service.directory, service.run = tmp_path, tmp_path / "run"
    service.options = ("--run-dir", service.run, "--config", config)
    service.start()
    try:
        until = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                    text = answer.read().decode()
                break
            except urllib.error.URLError:
                assert time.monotonic() < until
                time.sleep(0.02)
    finally:
        service.end()
    assert _of(_samples(text), "service_up") == 1


def test_a_text_file_is_replaced_as_a_whole(node, service, tmp_path):
    container = node.container()
    container.add_inotify("/srv/app/file-0")
    service.wait_ready(1)
    file = tmp_path / "out" / "irmapdb.prom"
    file.parent.mkdir()
    file.write_text("old")
    before = file.stat().st_ino
    own = ("--run-dir", service.run, "--config", tmp_path / "warm.toml", "--cgroup", OURS)
    umask = os.umask(0o077)
    try:
        done = irmapdb("metrics", "--textfile", file, *own)
    finally:
        os.umask(umask)
    assert (done.code, done.out, done.err) == (0, "", "")
    assert file.stat().st_ino != before
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert list(file.parent.iterdir()) == [file]
    (known,) = service.containers()
    samples = _samples(file.read_text())
    assert _of(samples, "container_resolved_watches", container=known["id"]) == 1
    assert _of(samples, "container_dump_fails", container=known["id"]) is not None
    printed = _samples(irmapdb("metrics", "--no-check", *own).out)
    assert "irmapdb_container_dump_fails" not in printed
    assert _of(printed, "container_watches", container=known["id"]) == 1
    assert irmapdb("metrics", "--textfile", tmp_path / "absent" / "a.prom", *own).code == 1
    said = irmapdb("metrics", "--no-check", "--textfile", tmp_path / "out" / "name", *own)
    assert said.err == "node_exporter reads only files whose names end with .prom\n"


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (b"GET /metrics?a=b HTTP/1.0\n\n", 200),
        (b"GET / HTTP/1.1\r\n\r\n", 200),
        (b"GET /other HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\n\r\n", 405),
        (b"\xff\x00\r\n\r\n", 400),
        (b"GET /metrics\r\n\r\n", 400),
        (b"A" * 100_000, 400),
    ],
)
def test_a_request_of_any_form_has_an_answer(service, request_, code):
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        head, _ = service.ask(request_)
        assert head.startswith(f"HTTP/1.1 {code} ") or (code == 400 and head == "")
    assert service.samples()


def test_hostile_clients_do_not_delay_the_service(node, service, tmp_path):
    container = node.container()
    container.add_inotify("/srv/app/file-0")
    service.wait_ready(1)
    with contextlib.ExitStack() as stack:
        # Silent ones, ones that send a part, and ones that do not read their answer.
        for part in (b"", b"GET /metrics", b"GET /metrics HTTP/1.1\r\n\r\n") * 2:
            client = stack.enter_context(service.connect())
            client.send(part)
        # The hook has its answer within the time for which its script waits.
        for _ in range(5):
            assert ask_service(service.run, wait_s=1.0) is not None
        container.add_inotify("/srv/app/file-1")
        service.wait_ready(2)
    # And an honest client gets one, in its turn.
    assert _of(service.samples(), "service_up") == 1


def test_idle_clients_delay_no_other_one(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics_clients, "_ACCEPT_S", WAIT_S)
    listener = open_listener(ListenAddress(path=str(tmp_path / "socket")))
    texts = []

    def text() -> bytes:
        texts.append(b"one 1\n")
        return texts[-1] * 100_000  # more than fits into the socket's buffer

    def connect() -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(WAIT_S)
        client.connect(str(tmp_path / "socket"))
        return client

    # An idle client has more time than the test waits for the others.
    server = Thread(
        target=metrics_clients.serve,
        args=(listener, text, "text/plain"),
        kwargs={"client_s": WAIT_S * 10},
    )
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connect()) for _ in range(6)]
        idle[1].send(b"GET /metr")
        idle[2].send(b"GET / HTTP/1.1\r\n\r\n")  # it reads nothing
        server.start()
        for request, code in ((b"GET / HTTP/1.1\r\n\r\n", 200), (b"GET /x HTTP/1.1\n\n", 404)) * 2:
            with connect() as client:
                client.send(request)
                said = b""
                while part := client.recv(1 << 16):
                    said += part
            assert said.startswith(b"HTTP/1.1 %d " % code)
            assert said.count(b"one 1\n") == (100_000 if code == 200 else 0)
    server.join()
    listener.close()
    assert len(texts) == 1


def test_a_request_that_comes_while_the_text_is_made_has_an_answer(tmp_path):
    listener = open_listener(ListenAddress(path=str(tmp_path / "socket")))
    first, second = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    client_s = 0.2

    def text() -> bytes:
        second.send(b"GET / HTTP/1.1\r\n\r\n")
        time.sleep(2 * client_s)  # longer than the second client has
        return b"one 1\n"

    with first, second:
        for client in (first, second):
            client.connect(str(tmp_path / "socket"))
        first.send(b"GET / HTTP/1.1\r\n\r\n")
        metrics_clients.serve(listener, text, "text/plain", client_s=client_s)
        assert [client.recv(1 << 16)[-6:] for client in (first, second)] == [b"one 1\n"] * 2
    listener.close()


def test_only_root_can_connect_and_only_a_socket_is_replaced(service, tmp_path):
    service.samples()
    assert stat.S_IMODE(service.socket.stat().st_mode) == 0o600
    assert service.end() == 0
    assert not service.socket.exists()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(os.fspath(service.socket))
    service.start()
    assert service.samples()
    service.end()
    tmp_path.chmod(0o777)
    address = load_config(tmp_path / "warm.toml").metrics.listen
    with pytest.raises(FileError, match="cannot listen on"):
        open_listener(address)
    tmp_path.chmod(0o700)
    service.socket.write_text("a file")
    address = load_config(tmp_path / "warm.toml").metrics.listen
    with pytest.raises(FileError, match="is no socket"):
        open_listener(address)
    assert service.socket.read_text() == "a file"
    service.start()
    assert service.process.wait(60) == 1


@pytest.mark.parametrize("listen", ["127.0.0.1:{}", "[::1]:{}", "localhost:{}"])
def test_a_loopback_port(tmp_path, listen):
    config = tmp_path / "irmapdb.toml"
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    config.write_text(f'[metrics]\nlisten = "{listen.format(port)}"\n')
    address = load_config(config).metrics.listen
    assert str(address).endswith(f":{port}")
    try:
        listener = open_listener(address)
    except FileError:
        if "::1" not in listen:
            raise
        pytest.skip("needs IPv6")
    with listener:
        assert listener.getsockname()[:2] == (address.host, port)
        if "::1" not in listen:
            with pytest.raises(FileError, match="cannot listen on"):
                open_listener(address)


@pytest.mark.parametrize(
    "value",
    [
        *('"0.0.0.0:9742"', '"9742"', "9742", '"127.0.0.1:0"', '"127.0.0.1:65536"', '"[::]:1"'),
        *('"host:80"', '"metrics.sock"', '"127.0.0.1:\u0663"', '"/a\\u0000b"', "[]"),
        f'"/{"a" * 200}"',
    ],
)
def test_another_address_is_refused(tmp_path, value):
    config = tmp_path / "irmapdb.toml"
    config.write_text(f"[metrics]\nlisten = {value}\n")
    with pytest.raises(ConfigError, match="listen"):
        load_config(config)


def test_a_work_dir_that_does_not_answer_hides_no_other_one(tmp_path):
    run = hook_runs.HookRun(
        at_s=0.0,
        by="hook",
        outcome="done",
        took_s=1.0,
        paused=False,
        watches=1,
        resolved=1,
        pid=1,
        container="good",
        work=os.fsencode(tmp_path / "good"),
        text="",
    )
    silent = tmp_path / "silent"
    for directory in (tmp_path / "good", silent):
        directory.mkdir()
    # Freezing for 1 µs, frozen for 2 µs: images/stats.proto of CRIU.
    stats = HEADER.pack(*STATS) + b"\x0c\0\0\0\x0a\x0a\x08\x01\x10\x02\x18\x03\x20\x04\x40\x05"
    (tmp_path / "good" / "stats-dump").write_bytes(stats)
    (expected,) = metrics._last_runs([run], {"good"})
    assert (expected.freezing_s, expected.frozen_s) == (0.000001, 0.000002)
    hung = run._replace(container="silent", work=os.fsencode(silent))
    with SilentFuse(silent) as server:
        server.silent = True
        found = metrics._last_runs([hung, run], {"good", "silent"})
    assert [(one.container, one.frozen_s) for one in found] == [
        ("silent", None),
        ("good", 0.000002),
    ]


def test_the_unit_permits_the_port_only_where_it_is_needed(tmp_path):
    plain = unit.unit_text(["/usr/bin/irmapdb", "warm"], Path("/var/lib/irmapdb"))
    assert "RestrictAddressFamilies=AF_UNIX\n" in plain
    assert "IPAddressAllow" not in plain
    with_port = unit.unit_text(
        ["/usr/bin/irmapdb", "warm"], Path("/var/lib/irmapdb"), with_port=True
    )
    assert "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6\n" in with_port
    assert "IPAddressDeny=any\nIPAddressAllow=localhost\n" in with_port
    config = tmp_path / "irmapdb.toml"
    config.write_text('[metrics]\nlisten = "127.0.0.1:9742"\n')
    done = irmapdb("warm", "--install", "--unit-dir", tmp_path, "--config", config)
    assert done.code == 0
    assert "IPAddressAllow=localhost" in (tmp_path / unit.UNIT_NAME).read_text()


def test_files_that_cannot_be_read_are_left_out(node, tmp_path):
    container = node.container()
    container.add_inotify("/srv/app/file-0")
    run = tmp_path / "run"
    run.mkdir(mode=0o700)
    (run / "hook.log").mkdir()
    (run / "warm.pid").write_bytes(b"\xff")
    (tmp_path / "databases").mkdir(mode=0o700)
    config = Config(
        warm=WarmConfig(directory=os.fsencode(tmp_path / "databases")), metrics=MetricsConfig()
    )
    options = MetricsOptions(run, config, cgroup=OURS)
    (found,) = collect(options).containers
    assert (found.watches, found.resolved, found.stale) == (1, None, None)
    # A database that is none.
    (seen,) = look_around(OURS).seen
    stem = seen.container.name.file_stem
    (tmp_path / "databases" / f"{stem}.db").write_bytes(b"no database")
    (found,) = collect(options).containers
    assert found.stale is None
