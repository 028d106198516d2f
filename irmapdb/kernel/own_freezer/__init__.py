"""Stops a task tree for `irmapdb dump`, by ptrace and the cgroup freezer. CRIU has its own."""
