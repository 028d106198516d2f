"""Writes a man page for each command into a directory, from the source of `--help`: man-pages(7).

manpages.py DIRECTORY
"""

from __future__ import annotations

import re
import sys
from inspect import cleandoc
from pathlib import Path
from typing import Any, NamedTuple

import typer
from typer.main import get_command

from irmapdb import __version__
from irmapdb.commands import app
from irmapdb.commands.group import HELP_OPTIONS

_ENVIRONMENT = (
    ("IRMAPDB_DB", "--db", "The database, if neither --db nor -W is given."),
    ("IRMAPDB_CONFIG", "--config", "The configuration file, if --config is not given."),
    ("NO_COLOR", "--no-color", "If it is not empty: no colours, as with --no-color."),
)
"""Variable, the option of the commands that read it, and its meaning."""

_FILES = (
    ("/etc/irmapdb.toml", "--config", "The configuration."),
    ("irmap.db", "--db", "The database, in the work dir."),
    ("irmap-cache", "--work-dir", "CRIU's cache image, in the work dir."),
)

_EXAMPLE_COLUMNS = 80 - 7
"""Of a terminal, less the indent of a page."""


class Page(NamedTuple):
    """One command."""

    words: tuple[str, ...]
    """As it is called: `irmapdb`, `db`, `upgrade`."""
    command: Any
    siblings: tuple[str, ...]
    """Names of the pages of the commands beside it."""

    @property
    def name(self) -> str:
        return "-".join(self.words)


def pages() -> list[Page]:
    """All commands, each group before its own commands."""
    found: list[Page] = []

    def add(command: Any, words: tuple[str, ...], siblings: tuple[str, ...]) -> None:
        found.append(Page(words, command, siblings))
        children = getattr(command, "commands", {})
        names = tuple("-".join((*words, name)) for name in children)
        for name, child in children.items():
            add(child, (*words, name), names)

    add(get_command(app), ("irmapdb",), ())
    return found


def write_pages(directory: Path) -> list[Path]:
    """Write NAME.1 for each command; the files."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for page in pages():
        path = directory / f"{page.name}.1"
        path.write_text(render(page), encoding="utf-8")
        paths.append(path)
    return paths


def render(page: Page) -> str:
    """The page in the man macros of groff."""
    paragraphs = _paragraphs(page.command.help or "")
    about = paragraphs.pop(0)
    lines = [
        f'.TH {_plain(page.name.upper())} 1 "" "irmapdb {__version__}" "irmapdb manual"',
        ".ad l",  # the words of an option stay together
        ".nh",
        ".SH NAME",
        f"{_plain(page.name)} \\- {_text(about.rstrip('.'))}",
        ".SH SYNOPSIS",
        *_synopsis(page),
    ]
    examples: list[str] = []
    if any(re.fullmatch("Examples?:", one) for one in paragraphs):
        start = next(n for n, one in enumerate(paragraphs) if re.fullmatch("Examples?:", one))
        examples, paragraphs = paragraphs[start + 1 :], paragraphs[:start]
    codes = [one for one in paragraphs if re.match("(With -t, e|E)xit", one)]
    lines += _section("DESCRIPTION", _body([one for one in paragraphs if one not in codes]))
    lines += _section("COMMANDS", _commands(page))
    lines += _section("OPTIONS", _options(page))
    lines += _section("EXIT STATUS", _exit_status(page, codes))
    used = {name for one in _parameters(page) for name in one.opts}
    is_top = len(page.words) == 1
    for title, entries in (("ENVIRONMENT", _ENVIRONMENT), ("FILES", _FILES)):
        those = [(name, about) for name, option, about in entries if is_top or option in used]
        lines += _section(title, _entries(those))
    lines += _section("EXAMPLES", _examples(examples))
    lines += _section("SEE ALSO", _see_also(page))
    return "\n".join(lines) + "\n"


def _section(title: str, lines: list[str]) -> list[str]:
    return [f".SH {title}", *lines] if lines else []


def _paragraphs(text: str) -> list[str]:
    # A list stays one paragraph, with a line for each item.
    blocks = re.split(r"\n\s*\n", cleandoc(text))
    return ["\n".join(" ".join(one.split()) for one in re.split(r"\n(?=- )", b)) for b in blocks]


def _body(paragraphs: list[str]) -> list[str]:
    lines = []
    for one in paragraphs:
        if not one.startswith("- "):
            lines += [".PP", _text(one)]
            continue
        for item in one.split("\n"):
            name, colon, about = item.removeprefix("- ").partition(": ")
            is_term = colon and " " not in name
            head = [".TP", f"\\fB{_code(name)}\\fR"] if is_term else [".IP \\(bu 2"]
            lines += [*head, _text(about if is_term else item.removeprefix("- "))]
    return lines


def _parameters(page: Page) -> list[Any]:
    context = typer.Context(page.command, help_option_names=HELP_OPTIONS)
    return list(page.command.get_params(context))


def _is_option(parameter: Any) -> bool:
    return str(parameter.param_type_name) == "option"


def _record(page: Page, parameter: Any) -> tuple[str, str]:
    # As in --help: names and values; meaning, with the default.
    context = typer.Context(page.command, info_name=page.words[-1], help_option_names=HELP_OPTIONS)
    names, about = parameter.get_help_record(context) or ("", "")
    return names.strip(), about


def _synopsis(page: Page) -> list[str]:
    words = [f"\\fB{_code(' '.join(page.words))}\\fR"]
    parameters = _parameters(page)
    for parameter in parameters:
        if _is_option(parameter) and parameter.required:
            names, _ = _record(page, parameter)
            words.append(_styled(names.split(", ")[0] + " " + names.split(" ")[-1]))
    words.append("[\\fIOPTION\\fR]\\&.\\&.\\&.")
    for parameter in parameters:
        if not _is_option(parameter):
            name = parameter.metavar or parameter.name.upper()
            words.append(f"\\fI{_plain(name)}\\fR")
    if getattr(page.command, "commands", None):
        words.append("\\fICOMMAND\\fR")
    return [" ".join(words)]


def _styled(names: str) -> str:
    return re.sub(
        r"[^\s,]+",
        lambda word: f"\\f{'B' if word[0].startswith('-') else 'I'}{_code(word[0])}\\fR",
        names,
    )


def _commands(page: Page) -> list[str]:
    entries = []
    for name, child in getattr(page.command, "commands", {}).items():
        about = _paragraphs(child.help or "")[0]
        entries += [".TP", f"\\fB{_code('-'.join((*page.words, name)))}\\fR(1)", _text(about)]
    return entries


def _options(page: Page) -> list[str]:
    lines = []
    for parameter in _parameters(page):
        names, about = _record(page, parameter)
        if not _is_option(parameter):
            names = parameter.metavar or names
        lines += [".TP", _styled(names), _text(about)]
    return lines


def _exit_status(page: Page, codes: list[str]) -> list[str]:
    if len(page.words) == 1:
        return _body(codes)
    return [*_body(codes), ".PP", "The exit codes of all commands are in \\fBirmapdb\\fR(1)."]


def _entries(entries: list[tuple[str, str]]) -> list[str]:
    return [
        line for name, about in entries for line in (".TP", f"\\fB{_code(name)}\\fR", _text(about))
    ]


def _examples(examples: list[str]) -> list[str]:
    lines = []
    for one in examples:
        lines += [".PP", ".nf", *map(_start, map(_code, _folded(one.strip("`")))), ".fi"]
    return lines


def _folded(command: str) -> list[str]:
    # On several lines, as a shell takes it: no word is broken.
    lines = [""]
    words = re.findall(r"""(?:[^\s'"]|'[^']*'|"[^"]*")+""", command)
    for left, word in zip(range(len(words) - 1, -1, -1), words, strict=True):
        end = len(lines[-1]) + 1 + len(word) + (2 if left else 0)
        if lines[-1] and end > _EXAMPLE_COLUMNS:
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" {word}" if lines[-1] else word
    return lines


def _see_also(page: Page) -> list[str]:
    names = [*page.siblings, *(("irmapdb",) if len(page.words) > 1 else ())]
    if len(page.words) == 1:
        names = []  # COMMANDS has them
    names = [f"\\fB{_code(name)}\\fR(1)" for name in names if name != page.name]
    return [", ".join([*names, "\\fBcriu\\fR(8)"])]


# --- characters: groff_char(7) ------------------------------------------------------------------


def _plain(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-")


def _code(text: str) -> str:
    # As it is typed.
    text = _plain(text)
    for char, name in (("'", "aq"), ("`", "ga"), ("^", "ha"), ("~", "ti")):
        text = text.replace(char, f"\\({name}")
    return text


def _start(line: str) -> str:
    # No control line.
    return f"\\&{line}" if line.startswith((".", "'")) else line


def _text(text: str) -> str:
    # Prose, with code in backquotes.
    parts = " ".join(text.split()).split("`")
    styled = [
        f"\\fB{_code(part)}\\fR" if number % 2 else _plain(part)
        for number, part in enumerate(parts)
    ]
    return _start("".join(styled))


if __name__ == "__main__":
    for written in write_pages(Path(sys.argv[1])):
        print(written)
