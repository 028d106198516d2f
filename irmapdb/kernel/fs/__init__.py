"""Reads filesystems: btrfs and xfs reverse lookups, overlay and its layers, walks of one mount."""
