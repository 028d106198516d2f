"""hatchling's build hook: puts the man pages into the wheel, below share/man."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ManPages(BuildHookInterface[Any]):
    """Found by hatchling: pyproject.toml names this file."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the pages, and tell hatchling of them."""
        if version == "editable":
            return
        self._directory = tempfile.TemporaryDirectory()
        sys.path[:0] = [self.root, str(Path(self.root, "tools"))]
        from manpages import write_pages  # noqa: PLC0415 it needs the path above

        for page in write_pages(Path(self._directory.name)):
            build_data["shared_data"][str(page)] = f"share/man/man1/{page.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the pages; the wheel has them."""
        del version, build_data, artifact_path
        if hasattr(self, "_directory"):
            self._directory.cleanup()
