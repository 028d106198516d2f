"""Tests of the HTML report, most of them in a browser."""
