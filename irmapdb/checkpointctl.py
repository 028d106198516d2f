"""Implements `checkpointctl-irmap`, a plugin of checkpointctl.

checkpointctl executes any program `checkpointctl-NAME` on PATH as its command NAME, with the
arguments as they are. Before that it asks each with `--plugin-description`: the answer is one line,
and the exit code 42. It waits 500 ms for that, so nothing is imported before. Source: cmd/plugin.go
of checkpointctl.
"""

from __future__ import annotations

import sys

__all__ = ["main"]

_ASKED = ["--plugin-description"]
_DESCRIPTION = "Show the inotify and fanotify watches of a checkpoint, and predict their restore"
_DESCRIBED = 42


def main() -> None:
    """Run `checkpointctl irmap ARCHIVE [--root PATH]` as `irmapdb check --images ARCHIVE`."""
    arguments = sys.argv[1:]
    if arguments == _ASKED:
        sys.stdout.write(f"{_DESCRIPTION}\n")
        sys.stdout.flush()
        sys.exit(_DESCRIBED)
    from irmapdb.commands import main as irmapdb  # noqa: PLC0415 after the answer

    sys.argv = [sys.argv[0], "check", *_as_check(arguments)]
    irmapdb()


def _as_check(arguments: list[str]) -> list[str]:
    # The first word that is neither an option nor the value of --root is the archive; `-` is stdin.
    before = ""
    for number, word in enumerate(arguments):
        if (word == "-" or not word.startswith("-")) and before != "--root":
            return [*arguments[:number], "--images", *arguments[number:]]
        before = word
    return arguments
