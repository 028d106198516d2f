"""The benchmark: irmapdb's work beside the bare kernel's and the peers'. `make bench` runs it."""
