"""All targets by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.fuzz import (
    archives,
    criu_log,
    database,
    engine_files,
    hook_files,
    images,
    kernel_text,
    words,
)

if TYPE_CHECKING:
    from tests.fuzz.target import Target

__all__ = ["BY_NAME"]

BY_NAME: dict[str, Target] = {
    target.name: target
    for target in (
        *images.TARGETS,
        *kernel_text.TARGETS,
        *words.TARGETS,
        *criu_log.TARGETS,
        *database.TARGETS,
        *engine_files.TARGETS,
        *hook_files.TARGETS,
        *archives.TARGETS,
    )
}
"""In the order in which `make fuzz` runs them."""
