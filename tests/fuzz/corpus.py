"""The inputs in tests/data/fuzz: one file a target, one input a line.

A line is a JSON string in which each character is one byte (Latin-1), so that text stays legible
and a diff shows which input was added.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["add", "load"]

_DIRECTORY = Path(__file__).parent.parent / "data" / "fuzz"


def load(name: str) -> list[bytes]:
    """The kept inputs of a target; none where there is no file."""
    try:
        lines = (_DIRECTORY / f"{name}.jsonl").read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line).encode("latin-1") for line in lines]


def add(name: str, inputs: Iterable[bytes]) -> int:
    """Keep these inputs too, each once; how many are new."""
    known = load(name)
    new = [one for one in dict.fromkeys(inputs) if one not in set(known)]
    _DIRECTORY.mkdir(parents=True, exist_ok=True)
    with (_DIRECTORY / f"{name}.jsonl").open("a", encoding="ascii") as file:
        file.writelines(json.dumps(one.decode("latin-1")) + "\n" for one in new)
    return len(new)
