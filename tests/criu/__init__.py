"""Tests with real CRIU on real processes; root only."""
