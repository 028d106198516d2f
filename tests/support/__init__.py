"""What the tests make real things with: filesystems, watching processes, CRIU.

Nothing here imports irmapdb: this is the truth that irmapdb is compared with, kept apart from it.
Only `features` imports pytest, so that the demo and the benchmark can use the rest.
"""
