"""The service in a privileged container with the pids of the host, as contrib/kubernetes has it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from irmapdb.config import WarmConfig
from irmapdb.criu.hook_script import RUN_DIRECTORY, SCRIPT_PATH
from tests.support.cli import irmapdb
from tests.support.hook import CHECKOUT, hook_program
from tests.support.runc import fill_rootfs, python_homes
from tests.support.warm import OURS, Asked, Warm

MANIFEST = CHECKOUT / "contrib" / "kubernetes" / "irmapdb-warm.yaml"

CAPABILITIES = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_KILL",
    "CAP_SYS_ADMIN",
    "CAP_SYS_PTRACE",
]


class Pod(Warm):
    """The service in a container of runc's."""

    def start(self) -> None:
        self.id = f"warmpod-{os.getpid()}"
        bundle = self.directory / "pod"
        fill_rootfs(bundle / "rootfs")
        (self.directory / "databases").mkdir(mode=0o755)
        self.run.mkdir(mode=0o755)
        (bundle / "config.json").write_text(json.dumps(self._config()))
        command = ["runc", "--root", self.directory / "pods", "run", "--bundle", bundle, self.id]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def _config(self):
        writable = {self.run, self.directory / "databases"}
        binds = [*python_homes(), CHECKOUT, *writable, self.directory / "warm.toml"]
        command = [sys.executable, "-m", "irmapdb", "warm", "--interval", "0.2"]
        return {
            "ociVersion": "1.0.2",
            "root": {"path": "rootfs"},
            "process": {
                "cwd": str(CHECKOUT),
                "user": {"uid": 0, "gid": 0},
                "args": [
                    *command,
                    "--cgroup",
                    OURS,
                    *map(str, self.options),
                ],
                "env": ["LC_ALL=C.UTF-8"],
                "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES),
            },
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                *(
                    {
                        "destination": str(path),
                        "type": "bind",
                        "source": str(path),
                        "options": ["rbind", "rw" if path in writable else "ro"],
                    }
                    for path in binds
                ),
            ],
            "linux": {
                "cgroupsPath": f"/{self.id}",
                "namespaces": [{"type": name} for name in ("mount", "ipc", "uts")],
            },
        }


@pytest.fixture
def pod(tmp_path):
    made = Pod(tmp_path)
    yield made
    subprocess.run(["runc", "--root", tmp_path / "pods", "delete", "--force", made.id], check=False)
    made.process.wait(60)


def test_a_service_in_a_pod_serves_the_node(node, pod, hook, tmp_path):
    container = node.container()
    container.add_inotify("/srv/app/file-0")
    container.add_inotify("/srv")
    pod.wait_ready(2)
    asked = Asked.ask(hook, container.pid, tmp_path / "work")
    assert (asked.code, asked.alone) == (0, False), asked.said
    assert sorted(asked.paths) == [b"/srv", b"/srv/app/file-0"]


def test_the_manifest_has_the_paths_of_the_code():
    text = MANIFEST.read_text()
    databases = os.fsdecode(WarmConfig().directory)
    for path in (RUN_DIRECTORY, databases, SCRIPT_PATH.parent, Path("/etc/criu")):
        assert f"mountPath: {path}}}" in text
        assert f"hostPath: {{path: {path}, type: DirectoryOrCreate}}" in text
    assert "hostPID: true" in text
    assert "privileged: true" in text


def test_the_commands_of_the_manifest_work(tmp_path, monkeypatch):
    text = MANIFEST.read_text()
    (install, warm), (uninstall,) = (
        [found.split(", ") for found in re.findall(form, text)]
        for form in (r" args: \[(.*)\]", r" command: \[irmapdb, (.*)\]")
    )
    assert warm == ["warm"]
    monkeypatch.setenv("PATH", f"{hook_program(tmp_path).parent}:{os.environ['PATH']}")
    script = tmp_path / "libexec" / "irmapdb-hook"
    places = ("--criu-dir", tmp_path / "criu", "--script", script)
    (tmp_path / "criu").mkdir()
    assert irmapdb(*install, *places).code == 0
    assert str(script) in (tmp_path / "criu" / "runc.conf").read_text()
    assert irmapdb(*uninstall, *places).code == 0
    assert not script.exists()
