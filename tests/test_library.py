"""docs/library.md: each example prints the output on the page, and the page has each name."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import os
import re
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

import irmapdb
from tests.support.area import MountArea
from tests.support.features import require_root
from tests.support.watcher import Watcher

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "library.md"
_BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<shown>.*?)^```\n)?", re.MULTILINE | re.DOTALL
)
_FUNCTIONS = {"audit", "check", "check_images", "dump", "open_database", "pre_dump"}
_LIGHT = {"__future__", "irmapdb"}


def test_every_example_prints_the_output_on_the_page(area: MountArea, tmp_path: Path) -> None:
    require_root()
    lower, base = tmp_path / "lower", tmp_path / "base"
    images, other = tmp_path / "ckpt", tmp_path / "other"
    for directory in (lower, base, images, other):
        directory.mkdir()
    (lower / "settings").write_text("x\n")
    merged = area.overlay("app", lower=lower, upper_base=base).mountpoint
    with Watcher() as watcher:
        for path in (merged, merged / "settings"):
            watcher.add_inotify(path)
        real = {
            "/srv/app": str(merged),
            "/var/lib/ckpt": str(images),
            "/tmp/": f"{other}/",
            "4711": str(watcher.pid),
        }
        examples = list(_BLOCK.finditer(PAGE.read_text("utf-8")))
        assert len(examples) == PAGE.read_text("utf-8").count("```python") >= 6
        names: dict[str, object] = {}
        for example in examples:
            line = PAGE.read_text("utf-8")[: example.start()].count("\n") + 1
            code = compile("\n" * line + _named(example["code"], real), PAGE, "exec")
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(code, names)  # noqa: S102 the page is ours
            assert _named(example["shown"] or "", real) == out.getvalue(), f"line {line}"


def _named(text: str, real: dict[str, str]) -> str:
    return re.sub("|".join(map(re.escape, real)), lambda found: real[found[0]], text)


def test_every_name_is_on_the_page_and_no_other() -> None:
    page = PAGE.read_text("utf-8").partition("## Functions")[2]
    cells = "\n".join(line.split("|")[1] for line in page.splitlines() if line.startswith("|"))
    named = re.findall(r"`(\w+)", cells)
    assert sorted(named) == sorted({*irmapdb.__all__} - {"__version__", "AnyPath"})
    assert "`AnyPath`" in PAGE.read_text("utf-8")


@pytest.mark.parametrize("name", irmapdb.__all__)
def test_every_name_resolves_and_is_described(name: str) -> None:
    value = getattr(irmapdb, name)
    assert name in dir(irmapdb)
    if inspect.isroutine(value) or inspect.isclass(value):
        assert inspect.getdoc(value), "no docstring"
        assert value.__module__.startswith("irmapdb.")


def test_the_type_checker_sees_the_same_names() -> None:
    tree = ast.parse((ROOT / "irmapdb" / "__init__.pyi").read_text("utf-8"))
    seen = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("irmapdb.")
        for alias in node.names
    }
    for name, (module, inner) in seen.items():
        at_run_time = getattr(irmapdb, name)
        assert at_run_time is getattr(sys.modules[module], inner)
    assert {*seen, "__version__"} == set(irmapdb.__all__)


def test_a_type_checker_knows_every_name_and_no_other(tmp_path: Path) -> None:
    program = tmp_path / "user.py"
    lines = ["import irmapdb"]
    lines += [f"irmapdb.{name}" for name in irmapdb.__all__]
    lines.append("path: bytes | None = irmapdb.pre_dump(1, images_dir=b'.').watches[0].path")
    lines.append("irmapdb.no_such_name")
    program.write_text("\n".join(lines))
    mypy = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--no-error-summary"]
    done = subprocess.run(
        [*mypy, "--cache-dir", tmp_path / "cache", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    (said,) = done.stdout.splitlines()
    assert f"user.py:{len(lines)}: error: Module has no attribute" in said


def test_the_import_is_cheap() -> None:
    program = (
        "import sys; before = set(sys.modules); import irmapdb; dir(irmapdb); irmapdb.__all__; "
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) <= _LIGHT


def test_no_thread_sees_a_part_of_the_names() -> None:
    # Another thread may run between two instructions of the first use.
    program = """
import sys

numbers = set()

def look(frame, event, argument):
    if frame.f_globals.get("__name__") == "irmapdb":
        frame.f_trace_opcodes = True
        numbers.add(len(frame.f_globals.get("_found", ())))
    return look

sys.settrace(look)
import irmapdb
every = irmapdb.__all__
sys.settrace(None)
print(sorted(numbers) == [0, len(every) - 1])
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "True\n"


def test_a_zip_file_has_the_names_too(tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "packages"), "zip", ROOT, "irmapdb")
    program = "import irmapdb.model; print(irmapdb.__file__, irmapdb.format_kdev(254 << 20))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": archive},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{archive}/irmapdb/__init__.py 254:0\n"


@pytest.mark.parametrize("first", ["irmapdb.audit", "irmapdb.audit.check", "irmapdb.api"])
def test_a_package_does_not_hide_the_function(first: str) -> None:
    program = f"import {first}, irmapdb; from irmapdb import audit; print(callable(audit)); "
    program += "from irmapdb.audit import check; print(check.__name__)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "irmapdb.audit.check"]


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'pre_dmp'"):
        _ = irmapdb.pre_dmp
    assert not hasattr(irmapdb, "StepOptions")


def test_the_options_are_those_of_the_command() -> None:
    for name in _FUNCTIONS:
        parameters = inspect.signature(getattr(irmapdb, name)).parameters.values()
        first, *others = parameters
        assert first.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        assert all(one.kind is inspect.Parameter.KEYWORD_ONLY for one in others), name
        assert all(one.default is not inspect.Parameter.empty for one in others), name


@pytest.mark.parametrize("pid", [0, -1])
@pytest.mark.parametrize("name", ["check", "dump", "pre_dump"])
def test_a_value_that_is_no_pid(name: str, pid: int, tmp_path: Path) -> None:
    with pytest.raises(irmapdb.UsageError, match="not a process id"):
        getattr(irmapdb, name)(pid, images_dir=tmp_path / "img")
    assert not (tmp_path / "img").exists()


def test_arguments_that_no_audit_takes(tmp_path: Path) -> None:
    with pytest.raises(irmapdb.UsageError, match="time zone"):
        irmapdb.audit(tmp_path, unproved_since=datetime(2026, 1, 1))  # noqa: DTZ001
    with pytest.raises(irmapdb.UsageError, match="not a process id"):
        irmapdb.audit(tmp_path, pid=0)
    with pytest.raises(irmapdb.DatabaseError, match=r"irmap\.db"):
        irmapdb.audit(tmp_path)


@pytest.mark.parametrize("timeout_s", [0, -1.0, float("inf"), float("nan")])
def test_a_value_that_is_no_timeout(timeout_s: float, tmp_path: Path) -> None:
    with pytest.raises(irmapdb.UsageError, match="number of seconds"):
        irmapdb.dump(os.getpid(), images_dir=tmp_path, timeout_s=timeout_s)
    assert not list(tmp_path.iterdir())


def test_a_missing_images_dir_is_not_left_behind(tmp_path: Path) -> None:
    with pytest.raises(irmapdb.TaskError):
        irmapdb.pre_dump(1 << 22 | 1, images_dir=tmp_path / "img")
    assert not (tmp_path / "img").exists()


@pytest.mark.kernel
def test_nothing_is_printed_and_no_variable_is_read(
    tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_root()
    monkeypatch.setenv("IRMAPDB_DB", str(tmp_path / "other.db"))
    monkeypatch.setenv("IRMAPDB_CONFIG", str(tmp_path / "missing.toml"))
    images = tmp_path / "img"
    with Watcher() as watcher:
        watched = watcher.add_inotify(tmp_path)
        for step in (irmapdb.pre_dump, irmapdb.dump):
            report = step(watcher.pid, images_dir=os.fsencode(images))
            (row,) = report.watches
            assert watcher.hears(watched, lambda path=row.path: os.utime(path))
        irmapdb.check(watcher.pid, images_dir=str(images))
        with pytest.raises(irmapdb.FileError, match=r"inventory\.img"):
            irmapdb.check_images(images)  # CRIU's own dump has more files
        irmapdb.audit(os.fsencode(images), pid=watcher.pid)
    assert sorted(path.name for path in images.iterdir()) == [
        "fanotify.img",
        "inotify.img",
        "irmap-cache",
        "irmap.db",
    ]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("path", ["cache", b"caf\xe9", Path("cache")], ids=["str", "bytes", "path"])
def test_a_cache_comes_back_as_it_was_written(path: irmapdb.AnyPath, tmp_path: Path) -> None:
    target = os.path.join(os.fsencode(tmp_path), os.fsencode(path))
    entries = (
        irmapdb.CacheEntry(irmapdb.kdev_of(254, 0), (1 << 64) - 1, b"/caf\xe9"),
        irmapdb.CacheEntry(0, 0, b"/."),
    )
    irmapdb.write_cache(target, iter(entries))
    assert irmapdb.read_cache(target) == entries
    assert Path(os.fsdecode(target)).read_bytes() == irmapdb.encode_cache(entries)
    with pytest.raises(irmapdb.ImageError, match="does not fit"):
        irmapdb.write_cache(target, [irmapdb.CacheEntry(1 << 32, 1, b"/x")])
    assert irmapdb.read_cache(target) == entries
