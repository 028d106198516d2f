"""The steps of a checkpoint, pre-dump and dump, and the files in the work dir."""
