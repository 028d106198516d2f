"""Controls the garbage collector.

irmapdb makes hundreds of thousands of small objects and hardly a cycle. The collector would look
through all of them again and again.
"""

from __future__ import annotations

import contextlib
import gc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["paused", "run_rarely", "stop"]


@contextlib.contextmanager
def paused(*, collect_first: bool = False) -> Iterator[None]:
    """No collection in this block; on request a full collection before it."""
    was_enabled = gc.isenabled()
    if collect_first:
        gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def run_rarely() -> None:
    """For a process with many records: a collection a million objects, and none of these yet."""
    gc.freeze()
    gc.set_threshold(1_000_000, 20, 50)


def stop() -> None:
    """No collection from here on, nor at exit: for a process that ends soon."""
    gc.disable()
    gc.freeze()
