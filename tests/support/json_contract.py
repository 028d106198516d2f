"""Compares the JSON of each command with its schema in irmapdb/schemas: no field too few or many.

The schemas allow further fields, because a later irmapdb may have more. The tests do not: a field
that no schema has is not documented.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

import irmapdb

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["SCHEMAS", "check_json", "documents", "schema_name", "strict_validator"]

SCHEMAS = Path(irmapdb.__file__).parent / "schemas"


def schema_name(words: Sequence[str]) -> str:
    """The schema of a command line, without its suffix."""
    return "-".join(words[:2]) if words[0] in {"db", "fleet"} else words[0]


def documents(text: str) -> Iterator[Any]:
    """The JSON documents of an output, one after the other."""
    decoder, rest = json.JSONDecoder(), text.strip()
    while rest:
        document, end = decoder.raw_decode(rest)
        yield document
        rest = rest[end:].strip()


def check_json(words: Sequence[str], out: str) -> None:
    """Raises jsonschema's ValidationError if the output does not match the schema."""
    validator = strict_validator(schema_name(words))
    for document in documents(out):
        validator.validate(document)


@cache
def strict_validator(name: str) -> Draft202012Validator:
    """A validator that refuses fields which are not in the schema."""
    schemas = {path.name: _strict(json.loads(path.read_bytes())) for path in SCHEMAS.iterdir()}
    registry = Registry().with_resources(
        (each, Resource.from_contents(schema)) for each, schema in schemas.items()
    )
    return Draft202012Validator(schemas[f"{name}.json"], registry=registry)


def _strict(schema: object) -> object:
    if isinstance(schema, list):
        return [_strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    more = {"additionalProperties": False} if "properties" in schema else {}
    return more | {name: _strict(value) for name, value in schema.items()}
