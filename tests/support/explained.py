"""`irmapdb explain` of a log that CRIU just wrote."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from irmapdb.criu.explain.lines import Lines, StepLines
from irmapdb.criu.explain.messages import find_message
from tests.support.cli import irmapdb
from tests.support.explain_lines import BUILT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.criu import CriuRun

__all__ = ["explained", "stop_of"]


def explained(done: CriuRun, *options: str | Path) -> dict[str, Any]:
    """The JSON of `explain`. Every line of the log about watches is of a known kind.

    AssertionError if not, and if a message is in the log that is listed as built for the tests.
    """
    log = done.work / f"{done.action}.log"
    _check_all_known(log.read_bytes())
    said = irmapdb("explain", log, "--json", *options)
    document: dict[str, Any] = json.loads(said.out)
    assert said.code == (0 if document["right"] else 3), said.err
    assert document["criu"] is None or document["criu"].startswith("4.")
    people = irmapdb("explain", log, *options)
    assert people.code == said.code
    for finding in document["findings"]:
        assert (finding["command"] or "") in people.out
    return document


def _check_all_known(log: bytes) -> None:
    in_cache = False
    for line in Lines([log], "log"):
        if isinstance(line, StepLines):
            assert not line.counts.keys() & BUILT, f"real CRIU printed {line}"
            in_cache = True
            continue
        found = find_message(line.text, in_cache=in_cache)
        if found is None:
            assert not re.match(rb"(fsnotify|irmap): ", line.text), line
        else:
            in_cache = found[0].part == "irmap.c"
            assert found[0].name not in BUILT, f"real CRIU printed {line}"


def stop_of(document: dict[str, Any]) -> dict[str, Any]:
    """The finding that stopped CRIU: it comes first, and is the only one."""
    assert document["outcome"] == "failed"
    stops = [one for one in document["findings"] if one["stops"]]
    assert len(stops) == 1
    assert stops == document["findings"][:1], document["findings"]
    return stops[0]
