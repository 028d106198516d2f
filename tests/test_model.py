"""The model: device numbers, the equality of identities, and the text of errors."""

import os
import unicodedata
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irmapdb import errors
from irmapdb.convert import _count_unusable as count_unusable
from irmapdb.model import (
    CacheEntry,
    FileHandle,
    Identity,
    InodeKey,
    Mapping,
    Source,
    StaleReason,
    Tried,
    Unresolved,
    format_kdev,
    from_printable,
    is_canonical,
    kdev_of,
    major_minor,
    printable,
)

majors, minors = st.integers(0, 2**12 - 1), st.integers(0, 2**20 - 1)
identities = st.builds(
    Identity,
    st.integers(0, 2),
    st.integers(0, 2),
    st.sampled_from([None, FileHandle(1, b"a"), FileHandle(1, b"b"), FileHandle(2, b"a")]),
)


def test_a_kdev_is_not_a_st_dev():
    # As crit shows the entry of /etc in an image of CRIU: 254:0 is 266338304 there.
    assert kdev_of(254, 0) == 266338304
    assert format_kdev(266338304) == "254:0"
    assert os.makedev(254, 0) != 266338304
    # glibc's encoding agrees only where the major number is 0.
    assert os.makedev(0, 42) == kdev_of(0, 42)


@given(major=majors, minor=minors)
def test_a_device_number_comes_apart_as_it_was_put_together(major, minor):
    kdev = kdev_of(major, minor)
    assert major_minor(kdev) == (major, minor)
    assert kdev < 2**32


def test_a_key_reads_as_in_the_log_of_criu():
    assert str(InodeKey(0xFE00000, 0x2E3)) == "fe00000:2e3"
    identity = Identity(0xFE00000, 0x2E3, FileHandle(0x4D, b"\x01\xff"))
    assert str(identity) == "fe00000:2e3 handle 4d:01ff"
    assert str(identity._replace(handle=None)) == "fe00000:2e3"


def test_the_handle_decides_and_the_inode_number_only_without_one():
    mine = Identity(1, 2, FileHandle(1, b"mine"))
    assert mine.matches(mine._replace(ino=3))  # st_ino may differ from the inode's own number
    assert not mine.matches(mine._replace(handle=FileHandle(1, b"else")))
    assert not mine.matches(mine._replace(handle=FileHandle(2, b"mine")))
    assert mine.matches(mine._replace(handle=None))
    assert not mine.matches(Identity(1, 3, None))
    assert not mine.matches(mine._replace(kdev=7))


@given(one=identities, other=identities)
def test_matching_has_no_direction(one, other):
    assert one.matches(other) == other.matches(one)
    assert one.matches(one)


def test_records_cannot_be_changed():
    unresolved = Unresolved(Identity(1, 2, None), (Tried("handle", "no"), Tried("scan", "no such")))
    assert unresolved.why == "handle: no; scan: no such"
    assert Unresolved(Identity(1, 2, None), ()).why == "no source was asked"
    with pytest.raises(AttributeError):
        unresolved.deleted = True


def test_a_mapping_with_a_stale_at_is_stale():
    now = datetime(2026, 1, 2, tzinfo=UTC)
    mapping = Mapping(Identity(1, 2, None), b"/a", Source.SCAN, revalidate=False, first_seen_at=now)
    assert not mapping.stale
    gone = mapping._replace(stale_at=now, stale_reason=StaleReason.GONE)
    assert gone.stale


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_has_advice_and_an_exit_code(name):
    words = ("irmap.db", "locked") if name == "DatabaseError" else ("irmap.db: locked",)
    error = getattr(errors, name)(*words, advice="wait")
    assert isinstance(error, errors.IrmapError)
    assert str(error) == "irmap.db: locked; wait"
    assert str(type(error)(*words)) == "irmap.db: locked"
    assert error.exit_code == (2 if name == "UsageError" else 1)


@given(name=st.binary(), other=st.binary())
def test_a_printable_name_stays_on_its_line_and_differs_from_others(name, other):
    shown = printable(name)
    assert len(shown.splitlines()) <= 1
    assert not any(unicodedata.category(one) in {"Cc", "Cs", "Zl", "Zp"} for one in shown)
    assert (shown == printable(other)) == (name == other)


# Bytes that are near an escape, or near the edges of UTF-8, more often than chance would have them.
_odd_names = st.lists(
    st.one_of(
        st.binary(max_size=4),
        st.characters(codec="utf-8").map(str.encode),
        st.sampled_from(
            [
                *(bytes([byte]) for byte in range(256)),
                *(chr(code).encode() for code in (*range(0x80, 0xA1), 0xAD, 0x61C, 0x200B, 0xFEFF)),
                *(b"\\x95", b"\\u0095", b"\\U000e0001", b"\\\\", b"\\n", b"x95", b"u0095"),
                *("\U000e0001".encode(), "\ufffd".encode(), b"\xed\xb2\x95", b"\xc2", b"\xf4\x90"),
            ]
        ),
    )
).map(b"".join)


@given(name=_odd_names)
def test_a_printable_name_is_read_back_whole(name):
    shown = printable(name)
    assert shown.isprintable()
    assert from_printable(shown) == name


@pytest.mark.slow
def test_every_byte_and_every_character_of_unicode_is_read_back():
    singles = [bytes([byte]) for byte in range(256)]
    singles += [chr(code).encode() for code in range(0x80, 0x110000) if not 0xD800 <= code < 0xE000]
    shown = list(map(printable, singles))
    assert len(set(shown)) == len(singles)
    assert list(map(from_printable, shown)) == singles
    assert all(map(str.isprintable, shown))


def test_a_byte_and_the_character_of_its_number_are_two_names():
    assert printable(b"\x95") == r"\x95"
    assert printable("\x95".encode()) == r"\u0095"
    assert printable("a\u200bb".encode()) == r"a\u200bb", "what hides is shown"
    assert printable("\u65e5\U0001f600".encode()) == "\u65e5\U0001f600"


@pytest.mark.parametrize(
    "text", ["\\", "a\\q", "\\x9", "\\u12", "\\U00110000", "\\ud800", "\\udc95"]
)
def test_a_text_that_is_never_printed_is_not_read(text):
    with pytest.raises(ValueError):  # noqa: PT011 the type is the contract
        from_printable(text)


def test_a_printable_path_is_read_as_the_bytes_it_is(tmp_path):
    place = tmp_path / os.fsdecode(b"\xff\n\\")
    assert printable(place) == f"{tmp_path}/" + r"\xff\n\\"


@given(st.lists(st.sampled_from([b"", b".", b"..", b"...", b".a", b"a", b"a\n", b"\0", b"/"])))
def test_a_canonical_path_is_that_of_the_kernel(parts):
    path = b"/".join(parts)
    as_kernel = b"\0" not in path and path.startswith(b"/") and os.path.normpath(path) == path
    assert is_canonical(path) == (path == b"/." or (as_kernel and not path.startswith(b"//")))


_PARTS = st.sampled_from([b"", b"/", b".", b"..", b"a", b"a.", b"\0"])


@given(st.lists(st.lists(_PARTS).map(b"".join)))
def test_counting_at_once_gives_the_sum_of_counting_one_by_one(paths):
    entries = [CacheEntry(1, 2, path) for path in paths]
    assert count_unusable(entries) == sum(not is_canonical(path) for path in paths)
