"""Writes the tables of docs/json.md from the schemas in irmapdb/schemas.

json_docs.py docs/json.md
"""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_SCHEMAS = Path(__file__).parent.parent / "irmapdb" / "schemas"
_MARK = "<!-- From here on: make json-docs -->\n"
_ORDER = (
    *(
        "pre-dump",
        "dump",
        "check",
        "explain",
        "show",
        "diff",
        "audit",
        "ps",
        "prune",
        "lookup",
        "sql",
    ),
    *("hook", "warm"),
    *("fleet-push", "fleet-check", "fleet-prune", "fleet-current"),
    *("db-current", "db-history"),
)


def rendered(page: str) -> str:
    """The page with its tables as the schemas have them now."""
    head, mark, _ = page.partition(_MARK)
    sections = [_section(name, _load(name)) for name in _ORDER]
    parts = {name: part for name, part in _common().items() if "properties" in part}
    for name, part in parts.items():
        text = _paragraph(part.get("description", ""))
        sections.append(f"## {name}\n\n{text}" + _table(part))
    return head + mark + "\n" + "\n".join(sections)


def _load(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((_SCHEMAS / f"{name}.json").read_bytes())
    return schema


def _common() -> dict[str, Any]:
    parts: dict[str, Any] = _load("common")["$defs"]
    return parts


def _section(name: str, schema: dict[str, Any]) -> str:
    words = name.replace("db-", "db ").replace("fleet-", "fleet ")
    title = f"## irmapdb {words}\n\nSchema: `irmapdb/schemas/{name}.json`.\n\n"
    if "$ref" in schema:
        other = schema["$ref"].removesuffix(".json")
        return f"{title}The same as [irmapdb {other}](#irmapdb-{other}).\n"
    tables = []
    for one in schema.get("oneOf") or schema.get("anyOf") or [schema]:
        about = one.get("description", "")
        if one.get("type") == "array":
            about = f"An array. {about}".strip()
        tables.append(_paragraph(about) + _table(one))
    return title + "\n".join(tables)


def _paragraph(text: str) -> str:
    lines = textwrap.wrap(text, 100, break_long_words=False, break_on_hyphens=False)
    return "\n".join([*lines, "", ""]) if lines else ""


def _table(schema: dict[str, Any]) -> str:
    rows = [f"| `{name}` | {kind} | {text} |" for name, kind, text in _fields(schema, "")]
    if not rows:
        return ""
    return "\n".join(["| field | type | meaning |", "|---|---|---|", *rows, ""])


def _fields(schema: dict[str, Any], prefix: str) -> Iterator[tuple[str, str, str]]:
    schema, is_array = _inner(schema)
    if is_array and not prefix:
        prefix = "[]."
    for name, value in schema.get("properties", {}).items():
        kind, text = _kind(value), value.get("description") or _described(value)
        optional = "" if name in schema.get("required", ()) else " (not always there)"
        yield prefix + name, kind + optional, text.replace("|", "\\|")
        inner, many = _inner(value)
        if "properties" in inner:
            yield from _fields(inner, f"{prefix}{name}{'[]' if many else ''}.")
        elif isinstance(inner.get("additionalProperties"), dict):
            yield from _fields(inner["additionalProperties"], f"{prefix}{name}.*.")


def _inner(schema: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    # The object within arrays and `or null`.
    if schema.get("type") == "array":
        return _inner(schema["items"])[0], True
    for one in schema.get("anyOf", ()):
        if "properties" in one:
            return one, False
    return schema, False


def _described(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        part = _common()[schema["$ref"].rpartition("/")[2]]
        return "" if "properties" in part else str(part.get("description", ""))
    for one in schema.get("anyOf", ()):
        if text := _described(one):
            return text
    return ""


def _kind(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        part = _common()[name]
        return f"[{name}](#{name})" if "properties" in part else _kind(part)
    if "anyOf" in schema:
        return " or ".join(map(_kind, schema["anyOf"]))
    if "enum" in schema:
        words = ("null" if one is None else f"`{one}`" for one in schema["enum"])
        return ", ".join(words)
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    kind = schema.get("type", "any")
    kind = " or ".join(kind) if isinstance(kind, list) else kind
    if kind == "array":
        inner = _kind(schema["items"])
        return f"array of {inner}"
    return str(kind)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(rendered(path.read_text("utf-8")), "utf-8")
