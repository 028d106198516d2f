"""Finds paths for identities: the engine, and one module for each source of paths.

Each source gives candidates for a batch; none decides. `irmapdb.resolve.search` asks them in this
order, the cheapest first: stored rows, file handles, the layers of an overlay, the names in btrfs
and xfs, the open files of the tasks, a scan.
"""
