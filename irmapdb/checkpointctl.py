"""Implements `checkpointctl-irmap`, a plugin of checkpointctl.

checkpointctl executes any program `checkpointctl-NAME` on PATH as its command NAME, with the
arguments as they are. Before that it asks each with `--plugin-description`: the answer is one line,
and the exit code 42. It waits 500 ms for that, so nothing is imported before. Source: cmd/plugin.go
of checkpointctl.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["main"]

_ASKED = ["--plugin-description"]
_DESCRIPTION = "Show the inotify and fanotify watches of a checkpoint, and predict their restore"
_DESCRIBED = 42
_USAGE = "checkpointctl irmap ARCHIVE [--root PATH] [--json] [--all-rows]"


def main() -> None:
    """Run `checkpointctl irmap ARCHIVE [--root PATH]` as `irmapdb check --images ARCHIVE`."""
    arguments = sys.argv[1:]
    if arguments == _ASKED:
        sys.stdout.write(f"{_DESCRIPTION}\n")
        sys.stdout.flush()
        sys.exit(_DESCRIBED)
    as_check = _as_check(arguments)
    if as_check is None:
        _end_without_archive(is_asked={"-h", "--help"} & {*arguments})
    from irmapdb.commands import main as irmapdb  # noqa: PLC0415 after the answer

    sys.argv = [sys.argv[0], "check", *as_check]
    irmapdb()


def _as_check(arguments: list[str]) -> list[str] | None:
    # The first word that is neither an option nor the value of --root is the archive; None if there
    # is none.
    before = ""
    for number, word in enumerate(arguments):
        is_option = word.startswith("-") and word != "-"
        if before == "--" or (not is_option and before != "--root"):
            options = [one for one in arguments[:number] if one != "--"]
            return [*options, "--images", *arguments[number:]]
        before = word
    return None


def _end_without_archive(*, is_asked: object) -> NoReturn:
    if is_asked:
        sys.stdout.write(f"Usage: {_USAGE}\n\n{_DESCRIPTION}.\n")
        sys.stdout.write("The options are those of `irmapdb check --images`.\n")
        sys.exit(0)
    sys.stderr.write(f"irmapdb: no archive; {_USAGE}\n")
    sys.exit(2)
