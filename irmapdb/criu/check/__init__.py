"""Predicts the fate of each watch: before a dump, and before a restore.

`decision` decides on one watch as CRIU does, without any system call. `observe` gets the `facts`
that it asks for. `dump` uses both for a task tree, and `restore` reads the images of a dump.
"""

from __future__ import annotations
