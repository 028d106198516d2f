"""Knows CRIU: its hook, its configuration files, and its behaviour for each watch."""
