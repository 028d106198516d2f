"""Shows progress in one line on a terminal's stderr, and erases it at the end."""

from __future__ import annotations

import shutil
import sys
import time
from typing import Self

from irmapdb.commands import render
from irmapdb.commands.layout import text_width, wrap

__all__ = ["Progress"]

_PATIENCE_S = 0.5
_BETWEEN_S = 0.1


class Progress:
    """A progress line, after half a second, and only if stderr is a terminal."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _PATIENCE_S
        self._shown = False
        self._terminal = sys.stderr.isatty() and not render.is_quiet()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def scanning(self, scanned: int, top: bytes) -> None:
        """Show the number of compared entries, and the place."""
        if self._is_time():
            self._show(f"scanning {render.printable(top)}: {scanned:,} entries")

    def checking(self, done: int, total: int) -> None:
        """Show the number of checked mappings, and the number of all."""
        if self._is_time():
            self._show(f"checking: {done:,} of {total:,} mappings")

    def checking_containers(self, done: int, total: int) -> None:
        """Show the number of checked containers, and the number of all."""
        if self._is_time():
            self._show(f"checking: {done:,} of {total:,} containers")

    def removing(self, rows: int) -> None:
        """Show the number of removed rows."""
        if self._is_time():
            self._show(f"removing: {rows:,} rows")

    def _is_time(self) -> bool:
        return self._terminal and time.monotonic() >= self._next

    def _show(self, text: str) -> None:
        self._shown = True
        self._next = time.monotonic() + _BETWEEN_S
        columns = shutil.get_terminal_size().columns
        if text_width(text) >= columns:  # a wrapped line cannot be erased
            text = wrap(text, columns - 2)[0] + "…"
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()
