"""Compares stored mappings with the filesystem, and stores the result on request."""
