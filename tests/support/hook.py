"""irmapdb-hook as CRIU executes it: the installed program, or one like it for a bare checkout."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["CHECKOUT", "hook_program"]

CHECKOUT = Path(__file__).parent.parent.parent

_PROGRAM = """\
#!{python}
import sys

sys.path.insert(0, {checkout!r})
from irmapdb.hook import main

if __name__ == "__main__":
    sys.exit(main())
"""


def hook_program(directory: Path) -> Path:
    """The irmapdb-hook beside this Python, or one made in `directory`, as pip would make it."""
    installed = Path(sys.executable).with_name("irmapdb-hook")
    if installed.exists():
        return installed
    program = directory / "irmapdb-hook"
    program.write_text(_PROGRAM.format(python=sys.executable, checkout=str(CHECKOUT)))
    program.chmod(0o755)
    return program
