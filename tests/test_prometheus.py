"""The metrics beside Prometheus: its own checks, the alert rules, and the dashboard's queries."""

from __future__ import annotations

import http.server
import itertools
import json
import re
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from irmapdb.node.exposition import CONTENT_TYPE, exposition
from tests.support.features import require_program
from tests.support.figures import container_figures, node_figures

if TYPE_CHECKING:
    from collections.abc import Iterator

_CONTRIB = Path(__file__).parent.parent / "contrib"
_RULES = _CONTRIB / "prometheus" / "irmapdb.rules.yaml"
_DASHBOARD = _CONTRIB / "grafana" / "irmapdb.json"
_DOCS = Path(__file__).parent.parent / "docs" / "metrics.md"
_WAIT_S = 60.0


def _families(text: bytes) -> dict[str, Any]:
    return {one.name: one for one in text_string_to_metric_families(text.decode())}


def _expressions() -> list[str]:
    panels = json.loads(_DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def _rules() -> dict[str, str]:
    """The expression of each alert; promtool has checked the rest of the file."""
    found = {}
    text = _RULES.read_text()
    for block in text.split("- alert: ")[1:]:
        name, rest = block.split("\n", 1)
        folded = re.search(r"expr: >-\n((?: {10}.*\n)+)", rest)
        plain = re.search(r"expr: (.*)\n", rest)
        found[name] = " ".join(folded[1].split()) if folded else plain[1]
    return found


def test_promtool_finds_no_fault(tmp_path):
    require_program("promtool")
    subprocess.run(["promtool", "check", "rules", _RULES], check=True, capture_output=True)
    for figures in (node_figures(), node_figures(service=False)):
        done = subprocess.run(
            ["promtool", "check", "metrics"],
            input=exposition(figures),
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_labels_are_bounded_and_have_no_path_or_pid():
    hostile = container_figures()
    info = hostile.info._replace(
        name='a"b\\\n\x1b[2J\N{RIGHT-TO-LEFT OVERRIDE}' + "x" * 1000, image="caf\udce9", pod=None
    )
    figures = node_figures()._replace(containers=(hostile._replace(info=info),))
    families = _families(exposition(figures))
    labels = {
        name: value
        for family in families.values()
        for sample in family.samples
        for name, value in sample.labels.items()
        if name not in {"kind", "uid"}
    }
    assert labels["name"].startswith('a"b\\\\\\n\\x1b[2J\\u202e')
    assert len(labels["name"]) == 200
    assert re.search("x~[0-9a-f]{16}$", labels["name"])
    assert labels["image"] == "caf\\xe9"
    assert {"pid", "path", "work_dir"}.isdisjoint(labels)
    for family in families.values():
        for sample in family.samples:
            assert all(value.isprintable() for value in sample.labels.values())
            assert "/run/work" not in sample.labels.values()
            assert "4711" not in sample.labels.values()


def test_long_ids_that_begin_alike_are_two_series():
    one = container_figures()
    containers = tuple(
        one._replace(info=one.info._replace(id=f"{'x' * 300}{last}")) for last in "ab"
    )
    families = _families(exposition(node_figures()._replace(containers=containers)))
    found = [one.labels["container"] for one in families["irmapdb_container_watches"].samples]
    assert len(set(found)) == 2


def test_an_unknown_value_has_no_series():
    unknown = container_figures(
        resolved=None, unresolved=None, proved_at_s=None, verdicts=None, dump_fails=None, stale=None
    )
    figures = node_figures()._replace(containers=(unknown,), last_runs=(), service=None)
    families = _families(exposition(figures))
    with_samples = {name for name, one in families.items() if one.samples}
    assert "irmapdb_container_watches" in with_samples
    assert not any(
        name.startswith(("irmapdb_container_stale", "irmapdb_criu", "irmapdb_hook_last"))
        for name in with_samples
    )
    assert families["irmapdb_service_up"].samples[0].value == 0


def test_the_page_has_every_metric():
    families = _families(exposition(node_figures()))
    names = {f"{name}_total" if one.type == "counter" else name for name, one in families.items()}
    page = _DOCS.read_text()
    table = page.partition("| metric | labels |")[2]
    assert set(re.findall(r"`(irmapdb_\w+)`", table)) == names
    used = {name for one in [*_expressions(), *_rules().values()] for name in _names(one)}
    assert used <= names
    # The dashboard shows all of them.
    assert {name for one in _expressions() for name in _names(one)} == names


def _names(expression: str) -> set[str]:
    return set(re.findall(r"irmapdb_\w+", expression))


class _Target(http.server.BaseHTTPRequestHandler):
    """Two machines whose counters grow from scrape to scrape; one lacks service and names."""

    steps = itertools.count()

    def do_GET(self) -> None:
        step = next(self.steps)
        service = self.path == "/metrics"
        text = exposition(node_figures(step, service=service, named=service))
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def _target() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Target) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


class Prometheus:
    """One that scrapes a target every 500 ms."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1"

    def get(self, name: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(parameters)
        try:
            url = f"{self._url}/{name}?{query}"
            with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 our own server
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            if error.code == 503:  # it starts
                raise
            pytest.fail(f"{parameters}: {error.read().decode()}")

    def query(self, expression: str) -> list[Any]:
        return self.get("query", query=expression)["result"]


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory) -> Iterator[Prometheus]:
    require_program("prometheus")
    directory = tmp_path_factory.mktemp("prometheus")
    port = _free_port()
    with _target() as target:
        config = directory / "prometheus.yml"
        config.write_text(
            "global: {scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 1s}\n"
            f"rule_files: [{_RULES}]\n"
            "scrape_configs:\n"
            "  - job_name: up\n"
            f"    static_configs: [{{targets: ['127.0.0.1:{target}'], labels: {{instance: up}}}}]\n"
            "  - job_name: down\n"
            "    metrics_path: /without-service\n"
            f"    static_configs: [{{targets: ['127.0.0.1:{target}'], "
            "labels: {instance: down}}]\n"
        )
        command = [
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        log = directory / "log"
        with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
            try:
                made = Prometheus(port)
                until = time.monotonic() + _WAIT_S
                while not _has_series(made):
                    assert process.poll() is None, log.read_text()
                    assert time.monotonic() < until, log.read_text()
                    time.sleep(0.1)
                yield made
            finally:
                process.terminate()


def _has_series(prometheus: Prometheus) -> bool:
    try:
        found = prometheus.query("count_over_time(irmapdb_hook_runs_total[1m]) >= 3")
    except (urllib.error.URLError, OSError):
        return False
    return {one["metric"]["instance"] for one in found} == {"up", "down"}


@pytest.mark.parametrize("expression", _expressions())
def test_each_query_of_the_dashboard_has_an_answer(prometheus, expression):
    text = expression.replace("$instance", ".+").replace("$__rate_interval", "1m")
    assert "$" not in text
    found = prometheus.query(text)
    assert found, text
    assert all(one["value"][1] != "NaN" for one in found), found


def test_the_dashboard_can_be_imported():
    dashboard = json.loads(_DASHBOARD.read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids)) > 10
    for panel in dashboard["panels"]:
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        references = [target["refId"] for target in panel["targets"]]
        assert len(references) == len(set(references))


@pytest.mark.parametrize("name", _rules())
def test_each_alert_is_raised_by_its_fault(prometheus, name):
    text = _rules()[name]
    # That Prometheus read the same text from the file.
    groups = prometheus.get("rules")["groups"]
    by_name = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert by_name.keys() == _rules().keys()
    assert prometheus.query(text), text
    expected = "down" if name == "IrmapdbServiceDown" else "up"
    until = time.monotonic() + _WAIT_S
    while True:
        (rule,) = (
            rule
            for group in prometheus.get("rules")["groups"]
            for rule in group["rules"]
            if rule["name"] == name
        )
        assert rule["health"] != "err", rule
        found = {one["labels"].get("instance"): one for one in rule["alerts"]}
        if expected in found and ("container_info" not in text or "down" in found):
            break
        assert time.monotonic() < until, rule
        time.sleep(0.2)
    # The texts were filled in, with the names of the container where it is about one.
    texts = found[expected]["annotations"].values()
    assert not any("{{" in one or "<no value>" in one for one in texts), texts
    if "container_info" in text:
        summaries = {name: one["annotations"]["summary"] for name, one in found.items()}
        info = container_figures().info
        assert f" {info.pod}/{info.name} on up " in summaries["up"]
        assert f" {info.id} on down " in summaries["down"]


def test_a_healthy_machine_raises_no_alert(tmp_path):
    require_program("promtool")
    series = [
        ('irmapdb_used{instance="a",kind="k",uid="0"}', "10+0x60"),
        ('irmapdb_limit{instance="a",kind="k"}', "100+0x60"),
        ('irmapdb_hook_last_run_failed{instance="a",container="c"}', "0+0x60"),
        ('irmapdb_hook_runs_total{instance="a",by="hook",outcome="failed"}', "3+0x60"),
        ('irmapdb_hook_runs_total{instance="a",by="hook",outcome="done"}', "3+1x60"),
        ('irmapdb_container_dump_fails{instance="a",container="c"}', "0+0x60"),
        ('irmapdb_container_info{instance="a",container="c",name="n",pod="p",image="i"}', "1x60"),
        ('irmapdb_container_last_proof_timestamp_seconds{instance="a",container="c"}', "0+60x60"),
        ('irmapdb_service_up{instance="a"}', "1+0x60"),
        ('irmapdb_containers{instance="a"}', "1+0x60"),
        ('irmapdb_hook_last_run_paused_seconds{instance="a",container="c"}', "0.1+0x60"),
    ]
    test = {
        "rule_files": [str(_RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": one, "values": values} for one, values in series],
                "alert_rule_test": [
                    {"eval_time": "50m", "alertname": name, "exp_alerts": []} for name in _rules()
                ],
            }
        ],
    }
    file = tmp_path / "test.yaml"
    file.write_text(json.dumps(test))  # JSON is YAML
    done = subprocess.run(
        ["promtool", "test", "rules", file], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
