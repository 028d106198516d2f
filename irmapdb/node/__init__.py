"""Handles one machine: its containers, and the service that proves their paths before a dump."""
