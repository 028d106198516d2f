"""Makes real objects for the tests: filesystems, watching processes, runs of CRIU.

Nothing here imports irmapdb: the tests compare irmapdb with this independent truth.
Only `features` imports pytest, so that the demo and the benchmark can use the rest.
"""
