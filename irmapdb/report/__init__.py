"""Writes the content of the databases as one HTML page without network and scripts."""
