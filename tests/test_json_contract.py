"""The JSON of every command agrees with its schema in irmapdb/schemas."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator, ValidationError
from typer.main import get_command

from irmapdb import commands
from irmapdb.image import cache
from irmapdb.model import CacheEntry
from tests.support.area import MountArea
from tests.support.cli import irmapdb
from tests.support.features import require_root
from tests.support.json_contract import SCHEMAS, documents, schema_name, strict_validator
from tests.support.watcher import Watcher


def _with_json() -> list[tuple[str, ...]]:
    found = []

    def walk(command: object, words: tuple[str, ...]) -> None:
        for name, child in getattr(command, "commands", {}).items():
            walk(child, (*words, name))
        if any("--json" in one.opts for one in command.params):
            found.append(words)

    walk(get_command(commands.app), ())
    return found


def test_every_command_with_json_has_a_schema_and_no_other_is_there() -> None:
    names = {f"{schema_name(words)}.json" for words in _with_json()}
    assert len(names) > 10
    assert {path.name for path in SCHEMAS.iterdir()} == {*names, "common.json"}


@pytest.mark.parametrize("path", sorted(SCHEMAS.iterdir()), ids=lambda path: path.stem)
def test_a_schema_is_one(path: Path) -> None:
    schema = json.loads(path.read_bytes())
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == Draft202012Validator.META_SCHEMA["$id"]
    assert schema["title"]


def test_the_page_agrees_with_the_schemas() -> None:
    root = Path(__file__).parent.parent
    spec = importlib.util.spec_from_file_location("json_docs", root / "tools" / "json_docs.py")
    json_docs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(json_docs)
    page = (root / "docs" / "json.md").read_text("utf-8")
    assert json_docs.rendered(page) == page, "make json-docs"
    assert all(
        f"schemas/{path.name}`" in page for path in SCHEMAS.iterdir() if path.stem != "common"
    )


def _checked(*words: str | Path) -> list | dict:
    done = irmapdb(*words, "--json")
    assert done.code in {0, 3}, done.said
    return next(documents(done.out))  # tests.support.cli has checked them


def test_the_json_of_the_steps(area: MountArea, tmp_path: Path) -> None:
    require_root()
    lower = tmp_path / "lower"
    lower.mkdir()
    base = tmp_path / "base"
    base.mkdir()
    names = [os.fsdecode(name) for name in (b"plain", b"caf\xe9", b"deleted", b"moved", b"lost")]
    for name in names:
        (lower / name).touch()
    merged = area.overlay("merged", lower=lower, upper_base=base).mountpoint
    with Watcher(children=1) as watcher:
        for name in names:
            watcher.add_inotify(merged / name)
        watcher.add_fanotify(merged)
        watcher.add_fanotify(merged, what="mount")
        watcher.add_fanotify(merged, what="filesystem")
        watcher.open(merged / "deleted")
        (merged / "deleted").unlink()
        place = ("-D", tmp_path / "img")
        tree = ("-t", str(watcher.pid))
        document = _checked("pre-dump", *tree, *place)
        assert {one["kind"] for one in document["watches"]} == {"inotify", "fanotify"}
        assert {one["path"] for one in document["watches"]} >= {None, f"{merged}/plain"}
        assert len(document["marks"]) == 2
        (merged / "moved").rename(merged / "there")
        document = _checked("dump", *tree, *place)
        assert document["changes"]
        for version in ("4.1", "4.3"):
            document = _checked("check", *tree, *place, "--criu-version", version)
        assert document["watches"]
        assert document["marks"]
        assert _checked("check", *tree, *place, "--hook")["hook"] is True
        assert _checked("ps", *tree)["watches"]
        assert _checked("ps")["processes"]
        for by in ("user", "container", "unit", "directory"):
            assert _checked("ps", "--by", by)["rows"]
        assert _checked("ps", str(watcher.pid))["watches"]
        (merged / "lost").unlink()
        (merged / "plain").rename(merged / "elsewhere")
        work = ("-W", tmp_path / "img")
        document = _checked("audit", *work, *tree, "--all")
        assert len({one["verdict"] for one in document["mappings"]}) > 1
        assert _checked("audit", *work, *tree, "--search", "--fix")["changes"]
    ino = str(document["mappings"][0]["ino"])
    (found,) = _checked("lookup", ino, *work)
    assert found["inodes"][0]["watches"]
    assert _checked("lookup", "/never/seen", *work) == [{"key": "/never/seen", "inodes": []}]
    assert _checked("sql", "SELECT * FROM watch; SELECT 1.5, NULL, x'00ff'", *work)
    assert _checked("sql", "--list")
    assert _checked("prune", *work, "--keep-runs", "1")["pruned"]["runs"]
    assert _checked("prune", *work, "--dry-run")["run"] is None
    assert _checked("db", "current", *work)
    assert _checked("db", "history")
    assert _checked("show", tmp_path / "img" / "irmap-cache")["entries"]


def test_the_json_of_check_all() -> None:
    document = _checked("check", "--all", "--services")
    assert isinstance(document["containers"], list)


def test_the_json_of_check_images(tmp_path: Path) -> None:
    require_root()
    (tmp_path / "inventory.img").touch()
    data = Path(__file__).parent / "data" / "images" / "files.img"
    (tmp_path / "files.img").write_bytes(data.read_bytes())
    assert _checked("check", "--images", tmp_path)["watches"]


def test_the_json_of_hook(tmp_path: Path) -> None:
    require_root()
    etc = ("--criu-dir", tmp_path / "criu", "--script", tmp_path / "bin" / "hook")
    assert _checked("hook", "--print", "podman", *etc)
    assert _checked("hook", "--install", "criu", *etc)
    assert _checked("hook", "--uninstall", "criu", *etc)


def test_the_json_of_warm(tmp_path: Path) -> None:
    require_root()
    config = tmp_path / "irmapdb.toml"
    config.write_text(f'[warm]\ndirectory = "{tmp_path}/databases"\n')
    own = ("--run-dir", tmp_path / "run", "--config", config)
    assert "running" not in _checked("warm", "--once", "--cgroup", "/absent*", *own)
    assert _checked("warm", "--status", "--run-dir", tmp_path / "run")["running"] is None


def test_a_large_number_stays_one(tmp_path: Path) -> None:
    entry = CacheEntry((1 << 32) - 1, (1 << 64) - 1, b"/\xff")
    (tmp_path / "irmap-cache").write_bytes(cache.encode_cache([entry]))
    document = _checked("show", tmp_path / "irmap-cache")
    assert document["entries"] == [{"dev": entry.kdev, "inode": entry.ino, "path": "/\udcff"}]


@pytest.mark.parametrize(
    ("name", "document"),
    [
        ("db-current", {"database": "a", "revision": "1", "newest": "1", "more": 1}),
        ("db-current", {"database": "a", "revision": "1"}),
        ("db-current", {"database": "a", "revision": None, "newest": "1"}),
        ("lookup", [{"key": "a", "inodes": [{"dev": -1}]}]),
        ("dump", {}),
        ("sql", [{"path": ["a"]}]),
    ],
)
def test_an_undocumented_field_is_refused(name: str, document: object) -> None:
    with pytest.raises(ValidationError):
        strict_validator(name).validate(document)


def test_a_field_that_is_new_is_no_error_for_others() -> None:
    schema = json.loads((SCHEMAS / "db-current.json").read_bytes())
    Draft202012Validator(schema).validate(
        {"database": "a", "revision": "1", "newest": "1", "more": 1}
    )


def test_examples_of_help_ask_for_fields_that_are_there() -> None:
    for words in _with_json():
        told = irmapdb(*words, "--help").out
        schema = (SCHEMAS / f"{schema_name(words)}.json").read_text()
        schema += (SCHEMAS / "pre-dump.json").read_text() if words == ("dump",) else ""
        for program in re.findall(r"jq '([^']*)'", told):
            for field in re.findall(r"\.([a-z_]+)", program):
                assert f'"{field}"' in schema, (words, field)
