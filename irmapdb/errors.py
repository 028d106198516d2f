"""Defines the errors: each has a message, an advice and an exit code.

Exit codes: 0 done; 1 not done; 2 wrong usage; 3 done, with findings.
Findings (an unresolved watch, a stale mapping that the audit finds) are results, not errors.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re

__all__ = [
    "ConfigError",
    "DatabaseError",
    "FileError",
    "FleetError",
    "FreezeError",
    "ImageError",
    "IrmapError",
    "ReportError",
    "SqlError",
    "TaskError",
    "UsageError",
]


# Characters that can move a terminal's cursor, break the line or change its order; and bytes that
# are no UTF-8. A backslash stays: names are quoted by `model.printable` before they get here.
_CONTROL = "[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"


def _on_one_line(text: str) -> str:
    if text.isascii() and text.isprintable():
        return text
    import re  # noqa: PLC0415 the hook needs it seldom

    return re.sub(_CONTROL, _escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"  # noqa: PLR2004 one byte


class IrmapError(Exception):
    """Base of every error that irmapdb raises on purpose.

    The message names the object; `advice` is the next step for the user, or an empty string if
    there is none. Both are one line without control characters: a tenant or another program may
    have written the texts that they quote.

    `about` names the setting with a wrong value, and `remedy` the setting that the advice asks to
    change: "database", "scan path". The command line puts the option of `about` before the message,
    and "with" and the option of `remedy` behind the advice.
    """

    exit_code = 1

    def __init__(
        self, message: str, *, advice: str = "", about: str = "", remedy: str = ""
    ) -> None:
        self.message = _on_one_line(message)
        self.advice = _on_one_line(advice)
        self.about = about
        self.remedy = remedy
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message}; {self.advice}" if self.advice else self.message


class UsageError(IrmapError):
    """An option or argument that can never work."""

    exit_code = 2


class ConfigError(IrmapError):
    """The configuration file cannot be read or has a wrong entry."""


class FileError(IrmapError):
    """A file or directory of ours that cannot be read or written."""


class ImageError(IrmapError):
    """A CRIU image, or its JSON form, that is damaged or of another type."""


class DatabaseError(IrmapError):
    """irmap.db cannot be opened, upgraded or written: `name` is the file's, as people read it."""

    def __init__(self, name: str, reason: str, *, advice: str = "", remedy: str = "") -> None:
        super().__init__(f"{name}: {reason}", advice=advice, remedy=remedy)
        self.reason = _on_one_line(reason)


class SqlError(IrmapError):
    """A statement that SQLite does not understand, or that is not allowed."""


class AnswerTooLargeError(SqlError):
    """A statement whose answer is larger than irmapdb keeps in memory."""


class TaskError(IrmapError):
    """The root task does not exist, or irmapdb may not read it."""


class FreezeError(IrmapError):
    """The tasks could not all be stopped. None is left stopped."""


class ReportError(IrmapError):
    """The page of a report cannot be made."""


class FleetError(IrmapError):
    """The fleet's server cannot be reached, or refuses a statement."""

    def __init__(
        self, message: str, *, advice: str = "", remedy: str = "", is_temporary: bool = False
    ) -> None:
        super().__init__(message, advice=advice, remedy=remedy)
        self.is_temporary = is_temporary
        """Whether another try may succeed without a change: the connection was lost."""
