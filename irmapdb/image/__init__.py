"""Converts CRIU's images, and crit's JSON of them, to the model and back.

It knows no database and opens no file: bytes in, frozen data out, and the other way round.
"""
