"""Find, prove and keep the paths of inotify watches and fanotify marks for CRIU."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.2.0"
