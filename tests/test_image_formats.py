"""The type of a file, from its first bytes."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irmapdb.errors import ImageError
from irmapdb.image.cache import decode_cache
from irmapdb.image.critjson import encode_json
from irmapdb.image.formats import Format, sniff

DATA = Path(__file__).parent / "data" / "images"


@pytest.mark.parametrize("path", sorted(DATA.glob("*.irmap-cache")), ids=lambda path: path.stem)
def test_an_image_and_its_json(path):
    image = path.read_bytes()
    assert sniff(image[:512], path.name) is Format.PB
    for pretty in (False, True):
        text = encode_json(decode_cache(image, path.name), pretty=pretty)
        assert sniff(text[:512], path.name) is Format.JSON


def test_a_database(tmp_path):
    path = tmp_path / "irmap-cache"  # the name says nothing
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (x)")
    connection.close()
    assert sniff(path.read_bytes()[:512], "x") is Format.DB


def test_json_may_start_with_space():
    assert sniff(b" \r\n\t{", "x") is Format.JSON


@pytest.mark.parametrize(
    ("prefix", "what"),
    [
        (b"", "an empty file"),
        (bytes.fromhex("40591055 5940"), "a CRIU image, cut off in its header"),
        (bytes.fromhex("40591055 06330957"), "CRIU's STATS image"),
        (bytes.fromhex("19435654 38313056"), "CRIU's FILES image"),
        (bytes.fromhex("16313158 16000000"), "CRIU's INVENTORY image"),
        (b"[]", "nothing that irmapdb knows (it starts with 5b 5d)"),
        (b"\x7fELF\x02\x01\x01", "nothing that irmapdb knows"),
    ],
)
def test_the_error_names_the_type_of_the_file(prefix, what):
    with pytest.raises(ImageError) as caught:
        sniff(prefix, "work/some-file")
    assert str(caught.value).startswith(f"work/some-file is {what}")
    # All forms that `show`, `import` and `convert` read.
    for form in ("irmap-cache", "JSON", "database", "image of watches", "archive"):
        assert form in caught.value.advice


MARKS = {
    Format.PB: bytes.fromhex("40591055 59400057"),
    Format.DB: b"SQLite format 3\0",
    Format.JSON: b"{",
}


@given(
    st.binary(max_size=40)
    | st.builds(bytes.__add__, st.sampled_from(list(MARKS.values())), st.binary())
)
def test_any_prefix_is_named_or_refused(prefix):
    try:
        found = sniff(prefix, "x")
    except ImageError:
        assert not prefix.startswith(tuple(MARKS.values()))
    else:
        assert prefix.lstrip().startswith(MARKS[found])
