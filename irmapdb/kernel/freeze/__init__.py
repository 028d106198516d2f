"""Stopping a task tree, and telling whether it is stopped: ptrace, the cgroup freezer."""
