"""The three forms of the cache: into the database, out of it, to JSON and back; beside crit."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from bench.errors import BenchError
from bench.figures import Beside, Figure, Goal, Samples, Skipped
from bench.irmap_image import write_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bench.figures import Timing
    from bench.harness import Bench

__all__ = ["NAME", "measure"]

NAME = "forms"

_DECODE = "crit decode (image → JSON)"
_ENCODE = "crit encode (JSON → image)"
_PEERS = {
    "import (image → database)": _DECODE,
    "export (database → image)": _ENCODE,
    "convert, image → JSON": _DECODE,
    "convert, JSON → image": _ENCODE,
}
_PROMISED = 2
"""The first two of _PEERS are to be no slower than crit."""
_GOAL_ENTRIES = 100_000


def measure(bench: Bench) -> Iterator[Figure]:
    """Time each conversion of an image of many entries, and check the result at the end."""
    directory = bench.new_directory()
    entries = bench.settings.entries
    image = directory / "irmap-cache"
    write_image(image, entries)
    ours = directory / "ours"
    ways = _ours(bench, image, ours)
    if bench.crit is None:
        yield Skipped(NAME, "crit decode, crit encode", f"no {bench.settings.crit} on PATH")
    else:
        ways |= _crit(bench, bench.crit, image, directory / "crit")
    samples = {what: Samples() for what in ways}
    for _ in range(bench.settings.repeats):
        for what, run in ways.items():
            timing = run()
            samples[what].add_command(timing)
    _check(image, ours, directory / "crit" if bench.crit else None)
    rows = {what: one.row(NAME, what, entries) for what, one in samples.items()}
    for what, peer in _PEERS.items():
        beside = Beside(peer, rows[peer].median) if peer in rows else None
        yield samples[what].row(NAME, what, entries, beside=beside)
    for peer in (_DECODE, _ENCODE):
        if peer in rows:
            yield rows[peer]
    for what, peer in list(_PEERS.items())[:_PROMISED]:
        if peer in rows and entries == _GOAL_ENTRIES:
            got = rows[what].median / rows[peer].median
            yield Goal(
                NAME, f"{what}, {entries:,} entries, of {peer.split(' (')[0]}", 1, got, "times"
            )


def _ours(bench: Bench, image: Path, out: Path) -> dict[str, Callable[[], Timing]]:
    database, text = out.with_suffix(".db"), out.with_suffix(".json")

    def import_() -> Timing:
        database.unlink(missing_ok=True)
        return bench.irmapdb("import", image, "--db", database)

    return {
        "import (image → database)": import_,
        "export (database → image)": lambda: bench.irmapdb(
            "export", out.with_suffix(".exported"), "--db", database
        ),
        "convert, image → JSON": lambda: bench.irmapdb("convert", image, text),
        "convert, JSON → image": lambda: bench.irmapdb(
            "convert", text, out.with_suffix(".converted"), "--to", "pb"
        ),
    }


def _crit(bench: Bench, crit: str, image: Path, out: Path) -> dict[str, Callable[[], Timing]]:
    text, back = out.with_suffix(".json"), out.with_suffix(".encoded")
    return {
        _DECODE: lambda: bench.time(crit, "decode", "-i", image, "-o", text),
        _ENCODE: lambda: bench.time(crit, "encode", "-i", text, "-o", back),
    }


def _check(image: Path, ours: Path, crit: Path | None) -> None:
    results = [ours.with_suffix(".exported"), ours.with_suffix(".converted")]
    if crit is not None:
        results.append(crit.with_suffix(".encoded"))
    for result in results:
        if result.read_bytes() != image.read_bytes():
            raise BenchError(f"{result} is not the image that it was made from")
    if crit is not None:
        texts = [path.with_suffix(".json").read_bytes() for path in (ours, crit)]
        if json.loads(texts[0]) != json.loads(texts[1]):
            raise BenchError("irmapdb's JSON of an image is not crit's")
