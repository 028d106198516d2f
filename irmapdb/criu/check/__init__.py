"""Predicts the fate of each watch: before a dump, and before a restore.

`predict` is CRIU's decision on one watch, pure; `observe` looks at what it asks for; `dump` puts
the two together for a task tree, and `restore` reads the images of a dump.
"""

from __future__ import annotations
