"""The sections: one module each, with a `NAME` and `measure(bench)`, which yields its figures.

A new one is named in SECTIONS of bench/run.py.
"""
