"""Reads /proc: the watches of tasks, their mounts, and the users whom the kernel charges."""
