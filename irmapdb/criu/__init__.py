"""CRIU: its hook, its configuration files, and what it will do with each watch."""
