"""Record and Words beside typing.NamedTuple and enum.StrEnum, which they stand for."""

from __future__ import annotations

import copy
import pickle
from enum import StrEnum
from typing import NamedTuple

import pytest

from irmapdb.record import Record, Words


class Mine(Record):
    """A record."""

    number: int
    name: str
    tail: tuple[int, ...] = ()
    more: str = "more"

    @property
    def double(self) -> int:
        return 2 * self.number

    def __str__(self) -> str:
        return f"{self.name}!"


class Theirs(NamedTuple):
    number: int
    name: str
    tail: tuple[int, ...] = ()
    more: str = "more"


def test_it_is_made_and_read_as_a_named_tuple():
    for values, named in (
        ((1, "a"), {}),
        ((1, "a", (2,), "b"), {}),
        ((1,), {"name": "a"}),
        ((), {"more": "b", "name": "a", "number": 1}),
    ):
        mine, theirs = Mine(*values, **named), Theirs(*values, **named)
        assert mine == theirs
        assert hash(mine) == hash(theirs)
        assert mine._asdict() == theirs._asdict()
        assert (mine.number, mine.name, mine.tail, mine.more) == tuple(theirs)
        assert repr(mine).removeprefix("Mine") == repr(theirs).removeprefix("Theirs")
    assert Mine._fields == Theirs._fields
    assert Mine._field_defaults == Theirs._field_defaults
    assert Mine._make([1, "a", (), "b"]) == Mine(1, "a", more="b")
    assert str(Mine(1, "a")) == "a!"
    assert Mine(2, "a").double == 4
    match Mine(1, "a"):
        case Mine(number, name):
            assert (number, name) == (1, "a")


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ((), {}),
        ((1,), {}),
        ((1, "a", (), "b", 5), {}),
        ((1, "a"), {"name": "b"}),
        ((1, "a"), {"other": "b"}),
    ],
)
def test_fields_that_are_missing_or_not_its_own_are_refused(values, named):
    for kind in (Mine, Theirs):
        with pytest.raises(TypeError):
            kind(*values, **named)


def test_it_is_frozen_and_replaced():
    one = Mine(1, "a")
    with pytest.raises(AttributeError):
        one.number = 2
    with pytest.raises(AttributeError):
        one.other = 2
    assert one._replace(number=2, more="b") == Mine(2, "a", (), "b")
    assert type(one._replace()) is Mine
    with pytest.raises(TypeError, match="other"):
        one._replace(other=1)
    with pytest.raises(TypeError, match="4 fields, not 1"):
        Mine._make([1])


def test_it_is_copied_and_pickled_whole():
    one = Mine(1, "a", (2, 3))
    for same in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):  # noqa: S301 our own
        assert same == one
        assert type(same) is Mine


def test_a_class_without_fields_or_with_defaults_out_of_order_is_a_mistake():
    with pytest.raises(TypeError, match="Empty has no fields"):

        class Empty(Record):
            pass

    with pytest.raises(TypeError, match="without a default"):

        class Unordered(Record):
            first: int = 1
            second: int


class MyWords(Words):
    """Words."""

    ONE = "one"
    """The first."""
    TWO = "two-2"

    @property
    def twice(self) -> str:
        return 2 * self


class TheirWords(StrEnum):
    ONE = "one"
    TWO = "two-2"


def test_words_are_read_as_an_enumeration():
    assert list(MyWords) == list(TheirWords) == ["one", "two-2"]
    assert len(MyWords) == len(TheirWords)
    assert MyWords.ONE in MyWords
    assert "three" not in MyWords
    for mine, theirs in zip(MyWords, TheirWords, strict=True):
        assert (mine.name, mine.value, str(mine), f"{mine}") == (
            theirs.name,
            theirs.value,
            str(theirs),
            f"{theirs}",
        )
        assert type(mine.value) is type(str(mine)) is str
        assert hash(mine) == hash(theirs)
        assert isinstance(mine, MyWords)
        assert MyWords(str(mine)) is MyWords(mine) is mine
        assert repr(mine) == f"MyWords.{mine.name}"
    assert MyWords.ONE.twice == "oneone"
    match MyWords("two-2"):
        case MyWords.TWO:
            pass
        case _:
            raise AssertionError


def test_a_word_is_the_only_one_with_its_text():
    for word in MyWords:
        again = pickle.loads(pickle.dumps(word))  # noqa: S301 our own
        assert again is copy.deepcopy(word) is copy.copy(word) is word


@pytest.mark.parametrize("text", ["", "ONE", "three", None, [], 1])
def test_another_text_is_no_word(text):
    for words in (MyWords, TheirWords):
        with pytest.raises(ValueError, match=words.__name__):
            words(text)
