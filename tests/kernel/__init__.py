"""Tests on real filesystems and processes; root only."""
