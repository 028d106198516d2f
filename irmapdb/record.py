"""Defines `Record`, a `typing.NamedTuple`, and `Words`, an `enum.StrEnum`, that take less time.

For mypy and for readers a Record is a NamedTuple: annotated fields, defaults, `_replace`,
`_asdict`. Words are a StrEnum: each member is the only one with its text, also after pickling. The
hook starts anew for each dump, and a container stands still while it defines its classes. There a
NamedTuple takes 0.2 ms, a frozen dataclass 1 ms and `import dataclasses` 15 ms more; a Record takes
0.02 ms: no code is generated, and no annotation is evaluated. `import enum` takes 3 ms.
"""

from __future__ import annotations

__all__ = ["Record", "Words"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from enum import StrEnum as Words
    from typing import Any, Self
    from typing import NamedTuple as Record
else:
    from _collections import _tuplegetter as field_at

    class _RecordType(type):
        def __new__(
            cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]
        ) -> _RecordType:
            fields = tuple(namespace.get("__annotations__", ()))
            if not fields and bases != (tuple,):
                raise TypeError(f"{name} has no fields")
            defaults = {field: namespace.pop(field) for field in fields if field in namespace}
            if tuple(defaults) != fields[len(fields) - len(defaults) :]:
                raise TypeError(f"{name}: a field without a default follows one that has a default")
            namespace |= {field: field_at(number, None) for number, field in enumerate(fields)}
            namespace |= {
                "__slots__": (),
                "__match_args__": fields,
                "_fields": fields,
                "_field_defaults": defaults,
            }
            return super().__new__(cls, name, bases, namespace)

    class Record(tuple, metaclass=_RecordType):
        """A tuple whose fields are the annotations of the class, in their order."""

        __slots__ = ()

        def __new__(cls, *values: object, **named: object) -> Self:
            if named or len(values) != len(cls._fields):
                values = cls._complete(values, named)
            return tuple.__new__(cls, values)

        @classmethod
        def _complete(cls, values: tuple[Any, ...], named: dict[str, Any]) -> list[Any]:
            rest = cls._fields[len(values) :]
            given = {**cls._field_defaults, **named}
            if len(values) > len(cls._fields) or not named.keys() <= {*rest}:
                got = ", ".join(named) or f"{len(values)} values"
                raise TypeError(f"{cls.__name__}({', '.join(cls._fields)}) does not take {got}")
            if missing := [field for field in rest if field not in given]:
                raise TypeError(f"{cls.__name__}() lacks {', '.join(missing)}")
            return [*values, *(given[field] for field in rest)]

        @classmethod
        def _make(cls, values: Iterable[Any]) -> Self:
            made = tuple.__new__(cls, values)
            if len(made) != len(cls._fields):
                raise TypeError(f"{cls.__name__} has {len(cls._fields)} fields, not {len(made)}")
            return made

        def _replace(self, **named: object) -> Self:
            return type(self)(**{**self._asdict(), **named})

        def _asdict(self) -> dict[str, Any]:
            return dict(zip(self._fields, self, strict=True))

        def __repr__(self) -> str:
            fields = (f"{field}={value!r}" for field, value in self._asdict().items())
            return f"{type(self).__name__}({', '.join(fields)})"

        def __getnewargs__(self) -> tuple[Any, ...]:
            return tuple(self)  # for pickle and copy

    class _WordsType(type):
        def __new__(
            cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]
        ) -> _WordsType:
            texts = {
                key: value
                for key, value in namespace.items()
                if type(value) is str and not key.startswith("_")
            }
            rest = {key: value for key, value in namespace.items() if key not in texts}
            made = super().__new__(cls, name, bases, rest)
            made._words = {}
            for key, text in texts.items():
                word = str.__new__(made, text)
                word.name = key
                made._words[text] = word
                setattr(made, key, word)
            return made

        def __call__(cls, text: object) -> Self:
            try:
                return cls._words[text]
            except (KeyError, TypeError):
                message = f"{text!r} is none of {cls.__name__}"
                raise ValueError(message) from None

        def __iter__(cls) -> Iterator[Self]:
            return iter(cls._words.values())

        def __len__(cls) -> int:
            return len(cls._words)

        def __contains__(cls, text: object) -> bool:
            return text in cls._words

    class Words(str, metaclass=_WordsType):
        """The texts of the class, each of them a member."""

        __slots__ = ("name",)

        @property
        def value(self) -> str:
            return str(self)

        def __repr__(self) -> str:
            return f"{type(self).__name__}.{self.name}"

        def __reduce__(self) -> tuple[Any, ...]:
            return type(self), (str(self),)
