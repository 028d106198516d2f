"""Finds paths for identities: the engine, and one module for each source of paths.

Each gives candidates for a batch; none decides. `irmapdb.resolve.search` asks them in this order,
cheapest first: stored rows, file handles, the handles within an overlay's, what btrfs and xfs know,
the tasks' own open files, a scan.
"""
