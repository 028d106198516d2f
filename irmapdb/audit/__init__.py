"""Stored mappings compared with the filesystem: which are stale, and where their files went."""
