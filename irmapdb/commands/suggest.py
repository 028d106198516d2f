"""Suggests an option for one that a command does not have."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

__all__ = ["advise_on_option"]

_CALLED_ALSO = {
    "database": "db",
    "dir": "images-dir",
    "directory": "images-dir",
    "id": "container",
    "log": "log-file",
    "name": "container",
    "p": "tree",
    "pid": "tree",
    "pod": "container",
    "process": "tree",
    "verbose": "verbosity",
}
"""The name of an option in other programs, and our name of it, both without dashes."""

_CRIUS = frozenset(
    {
        *("action-script", "cgroup-root", "enable-fs", "evasive-devices", "ext-mount-map"),
        *("ext-unix-sk", "external", "file-locks", "ghost-limit", "join-ns", "leave-running"),
        *("libdir", "link-remap", "lazy-pages", "manage-cgroups", "network-lock", "pidfile"),
        *("pre-dump-mode", "shell-job", "skip-mnt", "stream", "tcp-close", "tcp-established"),
        *("timeout", "track-mem", "unprivileged", "j", "l", "R"),
    }
)
"""Options of `criu dump` that change nothing for a watch: criu(8)."""

_CLOSE = 0.75
_MOST = 2
_LEAST_LETTERS = 3


def advise_on_option(
    option: str, arguments: Sequence[str], known: Collection[str], command: str
) -> str:
    """The next step after `option`, which is none of the `known` ones of the command."""
    if found := _like(option, arguments, known):
        return f"did you mean {' or '.join(found)}?"
    if option.lstrip("-") in _CRIUS and command in {"irmapdb pre-dump", "irmapdb dump"}:
        return f"it is criu's: leave it away here, and give it to `criu {command[8:]}`"
    return f"`{command} --help` lists the options"


def _like(option: str, arguments: Sequence[str], known: Collection[str]) -> list[str]:
    name = option.lstrip("-").replace("_", "-")
    if not option.startswith("--"):
        # One dash and a long name: the parser reads its first letter as an option.
        whole = [word for word in arguments if word.startswith(option) and f"-{word}" in known]
        if whole:
            return [f"-{whole[0]}"]
        other_case = f"-{name.swapcase()}"
        if other_case in known:
            return [other_case]
    also = f"--{_CALLED_ALSO.get(name.lower(), '')}"
    if also in known:
        return [also]
    return _similar(name.lower(), [one for one in known if one.startswith("--")])


def _similar(name: str, known: Collection[str]) -> list[str]:
    if len(name) < _LEAST_LETTERS:
        return []
    begin_so = [one for one in known if one[2:].startswith(name) or name.startswith(one[2:])]
    if begin_so:
        return begin_so[:_MOST]
    have_it = [one for one in known if name in one[2:].split("-") or one.endswith(f"-{name}")]
    if have_it:
        return have_it[:_MOST]
    return difflib.get_close_matches(f"--{name}", known, n=_MOST, cutoff=_CLOSE)
