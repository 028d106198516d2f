"""Targets: the state files of container engines."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from irmapdb.errors import TaskError
from irmapdb.node.container_info import ContainerInfo, find_named
from irmapdb.node.engine_names import Monitor, Subject, names_of
from irmapdb.node.guarded_json import GuardedFiles
from tests.fuzz.scratch import scratch
from tests.fuzz.target import Target, check, check_text, refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["TARGETS"]

_ID = "0123456789abcdef" * 4
_PID = 4711
_BUNDLE = f"/storage/overlay-containers/{_ID}/userdata"
_TASKS = "/run/containerd/io.containerd.runtime.v2.task/k8s.io"
_LONGEST = 1024
_CONMON = Monitor("conmon", ("conmon", "-c", _ID, "-b", _BUNDLE), "/")
_FILES = {
    "docker": f"var/lib/docker/containers/{_ID}/config.v2.json",
    "list": "storage/overlay-containers/containers.json",
    "bundle": f"{_BUNDLE}/config.json"[1:],
    "containerd": f"{_TASKS}/{_ID}/config.json"[1:],
    "runc": "run/runc/c1/state.json",
    "crun": "run/crun/c1/status",
}


class _EngineFiles:
    """Reads each input as each of the files, in a root of its own for each."""

    def __init__(self) -> None:
        self._root = scratch()
        self._files = {}
        for name, file in _FILES.items():
            path = self._root / name / file
            path.parent.mkdir(parents=True)
            self._files[name] = path
        pidfile = self._root / "containerd" / _TASKS[1:] / _ID / "init.pid"
        pidfile.write_text(f"{_PID}")

    def __call__(self, data: bytes) -> None:
        for name, path in self._files.items():
            path.write_bytes(data)
            monitor = _CONMON if name in {"list", "bundle"} else None
            subject = Subject(_PID, 99, (f"/docker/{_ID}",), (_ID,), monitor)
            found = names_of(subject, GuardedFiles(str(self._root / name)))
            for text in filter(None, found):
                text.encode()
                check(len(text) <= 2 * _LONGEST + 1, f"a name of {len(text)} characters")
            info = ContainerInfo(_ID, *found, cgroup=f"/docker/{_ID}")
            with refusal(TaskError) as refused:
                find_named("other", [info, info])
            check_text(str(refused.errors))
            check(find_named(_ID, [info]) == 0, "the id does not name it")


def _seeds() -> Iterator[bytes]:
    pod = {"io.kubernetes.pod.name": "web-1", "io.kubernetes.pod.namespace": "shop"}
    cri = {
        "io.kubernetes.cri.container-name": "app",
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.image-name": "registry.example/app:3",
        "io.kubernetes.cri.sandbox-name": "web-1",
        "io.kubernetes.cri.sandbox-namespace": "shop",
    }
    about = json.dumps({"image-name": "localhost/web:1", "name": "web"})
    state = {"id": "c1", "init_process_pid": _PID, "init_process_start": 99}
    for document in (
        {
            "Name": "/web",
            "State": {"Pid": _PID},
            "Config": {"Image": "nginx:1.27", "Labels": pod},
        },
        [{"id": _ID, "names": ["web"], "metadata": about}],
        {"annotations": {**pod, "io.container.manager": "cri-o"}},
        {"annotations": cri},
        {**state, "config": {"labels": ["bundle=/srv/web"]}},
        {"pid": _PID, "process-start-time": 99, "bundle": "/srv/web"},
    ):
        yield json.dumps(document).encode()


class _Once:
    """Makes the directories at the first input, and not when the targets are listed."""

    def __init__(self) -> None:
        self._made: _EngineFiles | None = None

    def __call__(self, data: bytes) -> None:
        if self._made is None:
            self._made = _EngineFiles()
        self._made(data)


TARGETS = (
    Target(
        name="engine-files",
        run=_Once(),
        seeds=_seeds,
        words=(b'"annotations"', b'"State"', b'"Pid"', b"4711", b'"names"', b'"metadata"', b"POD"),
        short_runs=100,
    ),
)
