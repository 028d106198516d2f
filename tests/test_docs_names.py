"""The modules, commands and options that the documents name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from irmapdb import commands

_TOP = Path(__file__).parent.parent
_PAGES = [*sorted(_TOP.glob("*.md")), *sorted((_TOP / "docs").glob("*.md"))]
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`\n]+)`")
_MODULE = re.compile(r"(?:irmapdb[/.])?([a-z_]+(?:[/.][a-z_]+)*?)(\.py|/)?")
_PACKAGES = {
    one.name for one in (_TOP / "irmapdb").iterdir() if one.is_dir() and one.name[0].isalpha()
}
_COMMAND = re.compile(r"irmapdb ([a-z][a-z-]*)((?: [^`\n|]*)?)")


def _spans(page: Path) -> list[str]:
    return _CODE.findall(page.read_text("utf-8"))


def _is_there(span: str) -> bool:
    """False for the name of a module, or of a name in one, that is not in the tree."""
    found = _MODULE.fullmatch(span)
    if found is None or (_TOP / span).is_file():
        return True
    first, *rest = re.split("[/.]", found[1])
    if found[2] == ".py":
        file = f"{'/'.join([first, *rest])}.py"
        return any((top / file).is_file() for top in (_TOP, _TOP / "irmapdb"))
    if first not in _PACKAGES or not rest:
        return True  # `mapping.path` is a column
    place = _TOP / "irmapdb" / first
    for number, name in enumerate(rest):
        if (place / name).is_dir():
            place /= name
        elif (module := place / f"{name}.py").is_file():
            text = module.read_text("utf-8")
            return all(re.search(rf"\b{word}\b", text) for word in rest[number + 1 :])
        else:
            return False
    return True


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_modules_that_are_named_are_there(page: Path) -> None:
    if page.name == "json.md":
        pytest.skip("its dots are those of fields: tests/test_json_contract.py compares them")
    assert [span for span in _spans(page) if not _is_there(span)] == []


def test_a_name_that_is_not_there_is_found() -> None:
    assert all(map(_is_there, ("cli.py", "kernel.proof", "image/cache.py", "store/", "a.path")))
    wrong = ("nothing.py", "kernel.nothing", "store/nothing", "store.write.nothing", "image/x.py")
    assert not any(map(_is_there, wrong))


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_commands_and_options_that_are_named_are_there(page: Path) -> None:
    group = get_command(commands.app)
    text = page.read_text("utf-8")
    wrong = []
    for name, rest in _COMMAND.findall("\n".join(_CODE.findall(text))):
        if name not in group.commands:
            wrong.append(f"irmapdb {name}")
            continue
        command = group.commands[name]
        words = rest.split()
        if hasattr(command, "commands"):
            command = command.commands.get(words[0] if words else "", command)
        known = {one for parameter in command.params for one in parameter.opts}
        given = {word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)}
        wrong += [f"irmapdb {name} {one}" for one in given - known - {"--help"}]
    assert not wrong


def _anchors(page: Path) -> set[str]:
    """The headings as GitHub names them: lower case, spaces as hyphens, no punctuation."""
    headings = _HEADING.findall(_BLOCK.sub("", page.read_text("utf-8")))
    return {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}


def _broken_links(page: Path, text: str) -> list[str]:
    broken = []
    for link in _LINK.findall(_BLOCK.sub("", text)):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        if not file.startswith("https:") and (
            not target.exists() or (anchor and anchor not in _anchors(target))
        ):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_links_lead_to_a_page_and_a_heading(page: Path) -> None:
    assert _broken_links(page, page.read_text("utf-8")) == []


def test_a_broken_link_is_found() -> None:
    page = _TOP / "README.md"
    assert _broken_links(page, "[a](docs/nothing.md) [b](#nothing) [c](docs/sql.md#tables)") == [
        "docs/nothing.md",
        "#nothing",
    ]
