"""Runs the steps of a checkpoint, pre-dump and dump, and handles the files in the work dir."""
