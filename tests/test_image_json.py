"""crit's JSON: against the real crit where it can, byte for byte where it cannot."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irmapdb.errors import ImageError
from irmapdb.image.cache import decode_cache, encode_cache
from irmapdb.image.critjson import decode_json, encode_json
from irmapdb.model import CacheEntry
from tests.support.features import require_program
from tests.support.programs import run

DATA = Path(__file__).parent / "data" / "images"
IMAGES = sorted(DATA.glob("*.irmap-cache"))

PRETTY = pytest.mark.parametrize("pretty", [False, True], ids=["plain", "pretty"])

HOSTILE = (
    CacheEntry(254 << 20, 1, b"/new\nline\ttab\0nul\x7f\"'\\/"),
    CacheEntry(254 << 20, 2, b"/caf\xe9"),
    CacheEntry(254 << 20, 3, b"b'/caf\\xe9'"),
    CacheEntry(254 << 20, 4, b"/\xed\xb3\xa9 a surrogate, as UTF-8 that is none"),
    CacheEntry(254 << 20, 5, b"/\xf0\x9f\x98\x80 two escapes, one character"),
    CacheEntry(254 << 20, 6, b"/\xe2\x80\xa8\xef\xbf\xbf\x1b[31m"),
    CacheEntry(0, 0, b""),
    CacheEntry(2**32 - 1, 2**64 - 1, bytes(range(256))),
)


@pytest.fixture
def _old_crit():  # the installed one; the newer one refuses names that are not UTF-8
    require_program("crit", package="criu")


def crit_decode(image, *, pretty):
    return run("crit", "decode", *(["--pretty"] if pretty else []), stdin=image)


def is_utf8(entry):
    try:
        entry.path.decode()
    except UnicodeDecodeError:
        return False
    return True


@PRETTY
@pytest.mark.usefixtures("_old_crit")
@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.stem)
def test_the_output_of_crit_for_an_image_of_criu(path, pretty):
    image = path.read_bytes()
    entries = decode_cache(image, path.name)
    text = encode_json(entries, pretty=pretty)
    assert encode_cache(decode_json(text, "x")) == image

    readable = [entry for entry in entries if is_utf8(entry)]
    theirs = crit_decode(encode_cache(readable), pretty=pretty)
    assert encode_json(readable, pretty=pretty) == theirs
    assert decode_json(theirs, "x") == tuple(readable)


@pytest.mark.usefixtures("_old_crit")
@PRETTY
def test_crit_agrees_on_hostile_names_and_the_largest_numbers(pretty):
    readable = [entry for entry in HOSTILE if is_utf8(entry)]
    assert len(readable) == 5
    image = encode_cache(readable)
    text = encode_json(readable, pretty=pretty)
    assert text == crit_decode(image, pretty=pretty)
    assert run("crit", "encode", stdin=text) == image


@pytest.mark.usefixtures("_old_crit")
def test_an_empty_image_is_as_crit_prints_it():
    image = encode_cache([])
    for pretty in (False, True):
        assert encode_json([], pretty=pretty) == crit_decode(image, pretty=pretty)
    assert run("crit", "encode", stdin=encode_json([])) == image


@PRETTY
def test_every_byte_of_hostile_names_comes_back(pretty):
    text = encode_json(HOSTILE, pretty=pretty)
    assert text.isascii()
    assert encode_cache(decode_json(text, "x")) == encode_cache(HOSTILE)
    # json and os of the standard library read the same path.
    paths = [entry["path"] for entry in json.loads(text)["entries"]]
    assert [os.fsencode(path) for path in paths] == [entry.path for entry in HOSTILE]


@pytest.mark.usefixtures("_old_crit")
def test_a_name_in_the_form_of_python_is_read_literally():
    # crit prints b"/caf\xe9" so: it looks the same as a file of that name.
    image = encode_cache([CacheEntry(1, 2, b"/caf\xe9")])
    entries = decode_json(crit_decode(image, pretty=False), "x")
    assert entries == (CacheEntry(1, 2, rb"b'/caf\xe9'"),)


@PRETTY
@given(
    entries=st.lists(
        st.builds(
            CacheEntry,
            kdev=st.integers(0, 2**32 - 1),
            ino=st.integers(0, 2**64 - 1),
            path=st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")),
        ),
        max_size=10,
    )
)
def test_entries_are_read_back(pretty, entries):
    text = encode_json(entries, pretty=pretty)
    assert decode_json(text, "x") == tuple(entries)
    # JSON in another layout is read too.
    again = json.dumps(json.loads(text), indent=1, sort_keys=True).encode()
    assert decode_json(again, "x") == tuple(entries)


@PRETTY
@pytest.mark.parametrize(("kdev", "ino"), [(-1, 0), (2**32, 0), (2**70, 0), (0, -1), (0, 2**64)])
def test_a_number_that_no_image_can_hold_is_not_written(pretty, kdev, ino):
    with pytest.raises(ImageError, match="entry 1 does not fit"):
        encode_json([CacheEntry(1, 1, b"/"), CacheEntry(kdev, ino, b"/")], pretty=pretty)


def image_with(entry):
    good = '{"dev": 1, "inode": 2, "path": "/"}'
    return f'{{"magic": "IRMAP_CACHE", "entries": [{good}, {entry}]}}'.encode()


@pytest.mark.parametrize("space", ["", " ", "\n  "])
@pytest.mark.parametrize("dev", ["266338304", '"266338304"', '"0:65024"'])
@pytest.mark.parametrize("ino", ["0", "19", "18446744073709551615"])
def test_the_form_of_go_criu_is_read(space, dev, ino):
    entry = f'{{"dev":{space}{dev},{space}"inode":"{ino}",{space}"path":{space}"/etc"}}'
    text = f'{{"magic":"IRMAP_CACHE","entries":[{entry}]}}\n'.encode()
    kdev = os.makedev(0, 65024) if ":" in dev else 266338304
    assert decode_json(text, "x") == (CacheEntry(kdev, int(ino), b"/etc"),)


def test_no_entries_in_the_form_of_go_criu():
    assert decode_json(b'{"magic":"IRMAP_CACHE","entries":null}', "x") == ()


@pytest.mark.parametrize(
    "digits", ["", "-1", "+1", "01", " 1", "1 ", "1.0", "1e3", "\\u0661", "9" * 20, "1" * 21]
)
def test_a_string_that_is_no_number_is_refused(digits):
    with pytest.raises(ImageError, match="entry 1: inode is "):
        decode_json(image_with(f'{{"dev": 1, "inode": "{digits}", "path": "/"}}'), "x")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (image_with('{"dev": "4294967296", "inode": "2", "path": "/"}'), "outside of 32 bits"),
        (b"", "line 1 column 1: Expecting value"),
        (b'{"magic": "IRMAP_CACHE",\n "entries": [}', "line 2 column 14: Expecting value"),
        (encode_json(HOSTILE)[:-3], "line 1 column "),
        (b'{"magic": "caf\xe9"}', "offset 14: not UTF-8"),
        (b"\xef\xbb\xbf{}", "line 1 column 1: Unexpected UTF-8 BOM"),
        (b"[" * 100_000, "nested too deep"),
        (b"1" * 5000, "a number where an object is wanted"),
        (b"[]", "an array where an object is wanted"),
        (b"{}", "key missing: entries, magic"),
        (b'{"magic": "IRMAP_CACHE", "entries": [], "x\\n": 1}', r"unknown key: 'x\n'"),
        (b'{"magic": "IRMAP_CACHE", "entries": [], "entries": []}', "a key is there twice"),
        (b'{"magic": "INOTIFY_FILE", "entries": []}', "magic is 'INOTIFY_FILE', not IRMAP_CACHE"),
        (b'{"magic": {"a": 1}, "entries": []}', "magic is an object, not IRMAP_CACHE"),
        (b'{"magic": "IRMAP_CACHE", "entries": {}}', "entries is an object, not an array"),
        (image_with("null"), "entry 1: null where an object is wanted"),
        (image_with("[1, 2, 3]"), "entry 1: an array where an object is wanted"),
        (image_with('{"dev": 1, "path": "/"}'), "entry 1: key missing: inode"),
        (
            image_with('{"dev": 1, "inode": 2, "path": "/", "extra": "AA=="}'),
            "entry 1: unknown key: 'extra'",
        ),
        (
            image_with('{"dev": 1, "inode": 2, "path": "/", "path": "/a"}'),
            "entry 1: a key is there twice",
        ),
        (image_with('{"dev": -1, "inode": 2, "path": "/"}'), "entry 1: dev is -0x1, outside of 32"),
        (
            image_with('{"dev": 4294967296, "inode": 2, "path": "/"}'),
            "entry 1: dev is 0x100000000, outside of 32 bits",
        ),
        (
            image_with('{"dev": 1, "inode": 18446744073709551616, "path": "/"}'),
            "entry 1: inode is 0x10000000000000000, outside of 64 bits",
        ),
        (
            image_with(f'{{"dev": {"9" * 5000}, "inode": 2, "path": "/"}}'),
            "entry 1: dev is a number of many digits, outside of 32 bits",
        ),
        (
            image_with(f'{{"dev": 1, "inode": -{"9" * 5000}, "path": "/"}}'),
            "entry 1: inode is a number of many digits, outside of 64 bits",
        ),
        (image_with('{"dev": true, "inode": 2, "path": "/"}'), "entry 1: dev is a truth value"),
        (image_with('{"dev": 1, "inode": 2.0, "path": "/"}'), "entry 1: inode is a number with a"),
        (image_with('{"dev": 1, "inode": "0x2", "path": "/"}'), "entry 1: inode is a string"),
        (image_with('{"dev": 1, "inode": NaN, "path": "/"}'), "entry 1: inode is a number wi"),
        (
            image_with('{"dev": "254:0\\n", "inode": 2, "path": "/"}'),
            r"entry 1: dev is '254:0\n', neither a number nor MAJOR:MINOR",
        ),
        (
            image_with('{"dev": "4096:0", "inode": 2, "path": "/"}'),
            "entry 1: dev is 4096:0, outside of 32 bits",
        ),
        (
            image_with('{"dev": "0:1048576", "inode": 2, "path": "/"}'),
            "entry 1: dev is 0:1048576, outside of 32 bits",
        ),
        (image_with('{"dev": 1, "inode": 2, "path": 3}'), "entry 1: path is a number, not a str"),
        (
            image_with('{"dev": 1, "inode": 2, "path": "/\\ud800"}'),
            r"entry 1: path has a lone surrogate '\ud800' that stands for no byte",
        ),
        (
            image_with('{"dev": 1, "inode": 2, "path": "/\\udc41"}'),
            r"entry 1: path has a lone surrogate '\udc41' that stands for no byte",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_refusal_names_the_fault(text, what):
    with pytest.raises(ImageError) as caught:
        decode_json(text, "cache.json")
    assert str(caught.value).startswith("cache.json: ")
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.advice


@given(st.data())
def test_a_damaged_text_is_refused_or_read(data):
    text = bytearray(encode_json(HOSTILE[:3], pretty=data.draw(st.booleans())))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        to = data.draw(st.integers(at, min(at + 3, len(text))))
        text[at:to] = data.draw(st.binary(max_size=3) | st.sampled_from([b'"', b"{", b"1e9", b"]"]))
    try:
        entries = decode_json(bytes(text), "x")
    except ImageError:
        return
    assert decode_json(encode_json(entries), "x") == entries
