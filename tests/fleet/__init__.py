"""Tests of `irmapdb fleet`, on a real PostgreSQL."""
