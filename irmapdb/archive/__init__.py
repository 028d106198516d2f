"""Reads the checkpoint of one container: an images dir, or the archive of an engine.

`members` walks an archive file, `layout` finds the checkpoint in it, `files` gives the files of a
checkpoint, of a directory or an archive alike. `container` reads the names of the container,
`origins` finds the source of each path at a restore, and `kind` detects the type of a file.
"""

from __future__ import annotations
