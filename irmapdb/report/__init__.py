"""Writes what the databases hold as one HTML page that needs no network and runs no script."""
