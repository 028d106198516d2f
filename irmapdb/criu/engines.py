"""Finds the engines of this machine that start CRIU, and the files that CRIU reads under each.

An engine is found by its program. podman, CRI-O, containerd and docker start CRIU through an OCI
runtime, which their own configuration names.

Sources: containers.conf(5); crio.conf(5); containerd's docs/cri/config.md; dockerd(8), daemon.json.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

from irmapdb import files
from irmapdb.criu import config_files
from irmapdb.criu.config_files import Runtime
from irmapdb.criu.crun import why_not_read
from irmapdb.errors import FileError
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

__all__ = ["Engine", "calls_hook", "find_engines", "names_hook", "runtime_under", "which"]

_PATIENCE_S = 10
_LIMIT_BYTES = 1 << 20
_VERSION = re.compile(r"\d+\.\d+[\w.+~-]*")

_PROGRAMS = {
    "criu": ("criu",),
    "runc": ("runc",),
    "crun": ("crun",),
    "podman": ("podman",),
    "cri-o": ("crio",),
    "containerd": ("containerd",),
    "docker": ("dockerd",),
}
_OWN_RUNTIME = {"criu": Runtime.CRIU, "runc": Runtime.RUNC, "crun": Runtime.CRUN}


class Engine(Record):
    """One engine or runtime."""

    name: str
    program: Path
    version: str
    """"" if the program did not print it."""
    runtime: str
    """The program that starts CRIU: "criu", "runc", "crun", or another one that the engine is
    configured for."""
    files: tuple[Path, ...]
    """The files that CRIU reads then; () if the runtime is another one."""
    unread: str
    """Why the last of these files is not read; "" if it is."""

    @property
    def read_files(self) -> tuple[Path, ...]:
        """Those of the files that are read."""
        return self.files[:1] if self.unread else self.files


def which(name: str) -> Path | None:
    """A program on PATH, or in a usual directory of system programs."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/local/sbin:/usr/sbin:/sbin"))
    found = shutil.which(name, path=path)
    return None if found is None else Path(found)


def find_engines(
    directory: Path = config_files.DIRECTORY, root: Path = Path("/")
) -> tuple[Engine, ...]:
    """The engines of this machine. `directory` has CRIU's configuration, `root` the engines'."""
    found = []
    for name, programs in _PROGRAMS.items():
        program = next(filter(None, map(which, programs)), None)
        if program is not None:
            found.append(_engine(name, program, directory, root))
    return tuple(found)


def calls_hook(
    name: str | None, directory: Path = config_files.DIRECTORY, root: Path = Path("/")
) -> bool:
    """Whether a file that CRIU reads under this engine names our script; it may not work.

    `name` as in `runtime_under`.
    """
    known = runtime_under(name, root)
    read = config_files.read_by(known, directory)
    if known is Runtime.CRUN and why_not_read():
        read = read[:1]
    return any(map(names_hook, read))


def runtime_under(name: str | None, root: Path = Path("/")) -> Runtime:
    """The runtime whose files CRIU reads under an engine: CRIU, RUNC or CRUN.

    `name` as in Engine. None, an unknown one, is taken for runc, which most of them use. Any other
    starts CRIU by itself, as LXC does, so CRIU reads only its own file.
    """
    if name is None:
        return Runtime.RUNC
    if name not in _PROGRAMS:
        return Runtime.CRIU
    runtime = name if name in _OWN_RUNTIME else _configured(name, root)
    return _OWN_RUNTIME.get(runtime, Runtime.CRIU)


def names_hook(file: Path) -> bool:
    """Whether a configuration file of CRIU names our script; False if it cannot be read."""
    try:
        return bool(config_files.our_scripts(file))
    except (FileError, OSError):
        return False


def _engine(name: str, program: Path, directory: Path, root: Path) -> Engine:
    runtime = name if name in _OWN_RUNTIME else _configured(name, root)
    known = _OWN_RUNTIME.get(runtime)
    read = () if known is None else config_files.read_by(known, directory)
    unread = why_not_read() if known is Runtime.CRUN else ""
    return Engine(name, program, _version(program), runtime, read, unread)


def _version(program: Path) -> str:
    try:
        done = subprocess.run(  # noqa: S603 a program of this machine
            [program, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=_PATIENCE_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = _VERSION.search(done.stdout[:4096].decode("ascii", "replace"))
    return found[0] if found else ""


# --- the runtime of an engine ---------------------------------------------------------------------


def _configured(name: str, root: Path) -> str:
    ask = {"podman": _podman, "cri-o": _crio, "containerd": _containerd, "docker": _docker}[name]
    return os.path.basename(ask(root) or "runc")


def _podman(root: Path) -> str:
    places = ("usr/share/containers/containers.conf", "etc/containers/containers.conf")
    directories = ("etc/containers/containers.conf.d",)
    chosen = ""
    for document in _documents(root, places, directories):
        chosen = _text(document, "engine", "runtime") or chosen
    return chosen or ("crun" if which("crun") else "runc")


def _crio(root: Path) -> str:
    places = ("etc/crio/crio.conf",)
    directories = ("usr/share/crio/crio.conf.d", "etc/crio/crio.conf.d")
    chosen, paths = "", {}
    for document in _documents(root, places, directories):
        chosen = _text(document, "crio", "runtime", "default_runtime") or chosen
        runtimes = _field(document, "crio", "runtime", "runtimes")
        for name in runtimes if isinstance(runtimes, dict) else ():
            paths[name] = _text(runtimes, name, "runtime_path")
    return paths.get(chosen) or chosen or ("runc" if which("runc") else "crun")


_CRI_PLUGINS = ("io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime", "cri")


def _containerd(root: Path) -> str:
    for document in _documents(root, ("etc/containerd/config.toml",), ()):
        for plugin in _CRI_PLUGINS:
            settings = _field(document, "plugins", plugin, "containerd")
            name = _text(settings, "default_runtime_name") or "runc"
            program = _text(settings, "runtimes", name, "options", "BinaryName")
            if program or settings is not None:
                return program or name
    return "runc"


def _docker(root: Path) -> str:
    try:
        text = files.read_if_there(root / "etc/docker/daemon.json", limit_bytes=_LIMIT_BYTES)
        document = json.loads(text or b"{}")
    except (FileError, ValueError, RecursionError):
        return "runc"
    name = _text(document, "default-runtime") or "runc"
    return _text(document, "runtimes", name, "path") or name


def _documents(
    root: Path, places: Iterable[str], directories: Iterable[str]
) -> Iterable[dict[str, Any]]:
    # The TOML files that can be read: a file that its engine cannot read is no setting.
    found = [root / place for place in places]
    for directory in directories:
        found += sorted((root / directory).glob("*.conf"))
    for file in found:
        try:
            text = files.read_if_there(file, limit_bytes=_LIMIT_BYTES)
            if text is not None:
                yield tomllib.loads(text.decode())
        except (FileError, ValueError, RecursionError):
            continue


def _field(document: object, *names: str) -> object:
    for name in names:
        document = document.get(name) if isinstance(document, dict) else None
    return document


def _text(document: object, *names: str) -> str:
    found = _field(document, *names)
    return found if isinstance(found, str) else ""
