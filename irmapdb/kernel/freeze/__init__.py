"""Stops a task tree, and detects whether it is stopped: ptrace, the cgroup freezer."""
