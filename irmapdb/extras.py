"""The command that installs an extra of irmapdb into the environment that runs now."""

from __future__ import annotations

import shlex
import sys

__all__ = ["install_extra"]


def install_extra(name: str) -> str:
    """The advice for a missing package of the extra `name`.

    It names the Python that runs now, because the `pip` on PATH often belongs to another
    environment. In this one irmapdb is installed, so pip asks the index only for the extra's
    packages.
    """
    return f"run `{shlex.quote(sys.executable)} -m pip install 'irmapdb[{name}]'`"
