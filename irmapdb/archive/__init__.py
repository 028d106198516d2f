"""Reads the checkpoint of one container: an images dir, or the archive of an engine.

`members` walks an archive file, `layout` finds the checkpoint in it, `files` gives the files of a
checkpoint, of a directory or an archive alike. `container` tells which container it was, `origins`
where a restore gets each path from, and `kind` what a file is.
"""

from __future__ import annotations
