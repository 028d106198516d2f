"""Tests of irmapdb."""
