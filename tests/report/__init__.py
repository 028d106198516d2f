"""Tests of the HTML report, in a browser where it counts."""
