"""Fuzz targets: code that reads bytes which a tenant, or another program, may have written.

A target takes any bytes and raises if irmapdb breaks a promise on them. `python -m tests.fuzz`
(`make fuzz`) runs targets with atheris; `test_fuzz.py` runs each for a moment and replays the
inputs in tests/data/fuzz. See docs/fuzzing.md.
"""
