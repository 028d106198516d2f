"""Guesses the engine from its traces in a log, and has the commands that help with each engine.

A tenant chooses names of files and tasks in a log, and so can cause a wrong guess. Then irmapdb
proposes the command of another engine. No text of a log becomes part of a command.
"""

from __future__ import annotations

import enum
import re

from irmapdb.criu.explain.message_kinds import Remedy
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["Engine", "Help", "engine_of", "help_for", "option_help", "traces"]


class Engine(enum.StrEnum):
    """The program that called CRIU."""

    CRIU = "criu"
    """By hand, or by a program that has no other name here."""
    RUNC = "runc"
    CRUN = "crun"
    PODMAN = "podman"
    CRIO = "cri-o"
    CONTAINERD = "containerd"
    DOCKER = "docker"
    LXC = "lxc"


class Help(Record):
    """The next step."""

    text: str
    command: str
    """A command to type; empty if there is none."""


_TRACES = {
    Engine.DOCKER: rb"/var/lib/docker/|/docker/|\bdockerd\b|Error response from daemon|/moby/"
    rb"|docker-[0-9a-f]{12}",
    Engine.CRIO: rb"crio-[0-9a-f]{12}|/crio/|\bcri-o\b|crio\.sock",
    Engine.PODMAN: rb"libpod-[0-9a-f]{12}|/libpod/|\bpodman\b|/overlay-containers/",
    Engine.CONTAINERD: rb"cri-containerd|/io\.containerd\.|/var/lib/containerd/|\bctr: "
    rb"|/run/containerd/",
    Engine.LXC: rb"lxc\.payload|/var/lib/lxc/|/var/lib/incus/",
    Engine.CRUN: rb"/crun\.conf|/run/crun/|CRIU checkpointing failed|CRIU restoring failed"
    rb"|\bcrun\b",
    Engine.RUNC: rb"/runc\.conf|/run/runc/|criu failed: type NOTIFY|\brunc\b",
}
"""The first engine with a trace counts: docker calls containerd, and that calls runc."""
_ANY_TRACE = re.compile(b"|".join(b"(%s)" % pattern for pattern in _TRACES.values()))
_ABOUT_ENGINE = (b"Would overwrite RPC settings with values from ", b"cg: ")


def traces(text: bytes, *, own: bool) -> set[Engine]:
    """The engines that have a trace in a text.

    `own`: it is a line of CRIU. Only two kinds of them are about the engine: the configuration file
    of the runtime, and cgroups. Others have mount points and names of files of the whole machine.
    """
    if own and not text.startswith(_ABOUT_ENGINE):
        return set()
    engines = tuple(_TRACES)
    return {engines[found.lastindex - 1] for found in _ANY_TRACE.finditer(text) if found.lastindex}


def engine_of(seen: Collection[Engine]) -> Engine | None:
    """The engine that called the others; None without a trace."""
    return next((engine for engine in _TRACES if engine in seen), None)


_INSTALL = {
    Engine.CRIU: "criu",
    Engine.LXC: "criu",
    Engine.RUNC: "runc",
    Engine.CRUN: "crun",
    Engine.PODMAN: "podman",
    Engine.CRIO: "runc",
    Engine.CONTAINERD: "runc",
    Engine.DOCKER: "runc",
}
_FILE = {
    Engine.CRIU: "/etc/criu/default.conf",
    Engine.LXC: "/etc/criu/default.conf",
    Engine.CRUN: "/etc/criu/crun.conf",
}
_RUNC_FILE = "/etc/criu/runc.conf"
_DUMPS = {
    Engine.CRIU: "criu dump",
    Engine.RUNC: "runc checkpoint",
    Engine.CRUN: "crun checkpoint",
    Engine.PODMAN: "podman container checkpoint",
}
_OF_RUNTIMES = {"tcp-established", "ext-unix-sk", "shell-job", "file-locks"}
_OPTIONS = {
    Engine.RUNC: _OF_RUNTIMES,
    Engine.CRUN: _OF_RUNTIMES,
    Engine.PODMAN: {"tcp-established", "file-locks"},
}
"""The options of CRIU that a program takes itself, under the same name."""


def help_for(remedy: Remedy, engine: Engine | None) -> Help:
    """The help for one of our messages. Without an engine it is that for CRIU alone."""
    engine = engine or Engine.CRIU
    if remedy is Remedy.HOOK:
        return _hook(engine)
    if remedy is Remedy.NO_FORCE:
        file = _file_of(engine)
        return Help(
            f"remove force-irmap (from the command, or from {file}), and install the hook: it "
            "puts the name into the kernel's cache, and CRIU finds the path by the handle",
            f"sed -i '/^ *force-irmap/d' {file}",
        )
    return _HELP[remedy]


def option_help(text: str, option: str, engine: Engine | None) -> Help:
    """The help for an error that is none of ours. `option` is CRIU's, without dashes, or empty."""
    if not option:
        return Help(text, "")
    engine = engine or Engine.CRIU
    if engine is Engine.CRIU or option in _OPTIONS.get(engine, ()):
        return Help(text, f"{_DUMPS[engine]} --{option} …")
    return Help(f"{text}; CRIU reads the option from this file", _append(option, engine))


def _append(option: str, engine: Engine) -> str:
    return f"echo {option} >> {_file_of(engine)}"


def _file_of(engine: Engine) -> str:
    return _FILE.get(engine, _RUNC_FILE)


def _hook(engine: Engine) -> Help:
    text = "install the hook: it proves the path and puts it into irmap-cache right before the dump"
    if engine is Engine.CRIO:
        text += ". If crio.conf has crun as its runtime, write crun in place of runc"
    return Help(text, f"irmapdb hook --install {_INSTALL[engine]}")


_HELP = {
    Remedy.NONE: Help("nothing is to be done", ""),
    Remedy.HOOK_LOG: Help(
        "the hook ran, and found no path: irmapdb.log in the work dir has the reasons",
        "irmapdb pre-dump -t PID -v",
    ),
    Remedy.CHECK: Help(
        "ask irmapdb about this tree: it names each watch that CRIU cannot dump, and the reason",
        "irmapdb check -t PID",
    ),
    Remedy.REMOVE_WATCH: Help(
        "let the task remove the watch, or close the file", "irmapdb check -t PID"
    ),
    Remedy.TMPFS: Help(
        "let the task remove the watch. For /etc/hosts of podman with crun: podman with --runtime "
        "runc, or with --security-opt unmask=ALL",
        "irmapdb check -t PID",
    ),
    Remedy.PROVIDE_PATH: Help(
        "provide the file before the restore (a volume, the same image), or make an empty file "
        "there",
        "irmapdb check --images DIR --root PATH",
    ),
    Remedy.LIMIT: Help(
        "if the reason is `No space left on device` or `Too many open files`, raise the limit of "
        "the user (fs.inotify.max_user_watches, fs.inotify.max_user_instances or "
        "fs.fanotify.max_user_groups)",
        "irmapdb ps",
    ),
    Remedy.REMOVE_CACHE: Help(
        "remove irmap-cache from the work dir. The hook does that by itself",
        "mv irmap-cache irmap-cache.broken",
    ),
    Remedy.PRE_DUMP: Help(
        "use irmapdb in place of criu pre-dump for this: it writes the paths of the other watches",
        "irmapdb pre-dump -t PID -D DIR",
    ),
    Remedy.REINSTALL: Help(
        "install the hook again, or remove the line from CRIU's configuration",
        "irmapdb hook --install RUNTIME",
    ),
    Remedy.KERNEL: Help("use Linux 6.6 or newer", "uname -r"),
    Remedy.MOUNT: Help(
        "mount the filesystem in the mount namespace of the root task, or let the task remove the "
        "watch",
        "irmapdb check -t PID",
    ),
    Remedy.MEMORY: Help("free some memory, and dump again", ""),
    Remedy.IMAGES: Help(
        "dump again, and restore with the same version of CRIU", "irmapdb check --images DIR"
    ),
    Remedy.SCRIPT: Help(
        "if it is irmapdb-hook: `strict` is set, and irmapdb.log in the work dir has the error. "
        "For another script, read its output above this message",
        "",
    ),
    Remedy.LAYERS: Help(
        "mount the overlay with xino=on, or with nfs_export=on,index=on, or with all layers on one "
        "filesystem",
        "irmapdb check -t PID",
    ),
}
