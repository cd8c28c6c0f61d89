"""Text that others wrote, as a terminal, a page or a spreadsheet may show it.

A run's name, its settings, its events and its reasons may come from anybody. Characters that move a
cursor, set a title, fill a clipboard, reorder a line or hide in it are written as escapes, such as
`\\x1b` and `\\u202e`.
"""

import os
import re
import sys

TYPE_CHECKING = False  # as in stabkit/__init__.py
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import IO, Any

# Control characters; soft hyphen; what sets the direction of text; what has no width; line and
# paragraph separators; tags; halves of surrogates, which stand for bytes that are no text.
_UNSAFE = (
    r"\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    r"\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f"
)
_IN_A_LINE = re.compile(f"[{_UNSAFE}]")
_IN_LINES = re.compile(rf"(?![\t\n])[{_UNSAFE}]")
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")  # the wide ones as well


def one_line(text: object) -> str:
    """`text` in one line, every unsafe character as its escape."""
    return _IN_A_LINE.sub(_escape, str(text))


def lines(text: object) -> str:
    """The same, but line ends and tabs stay."""
    return _IN_LINES.sub(_escape, str(text))


def csv_cell(value: object) -> object:
    """A text as a cell that no spreadsheet takes for a formula; what is no text as it is.

    An apostrophe in front makes it text. A number that is written as text needs none.
    """
    if not isinstance(value, str):
        return value
    text = one_line(value)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _escape(found: "re.Match[str]") -> str:
    return found[0].encode("unicode_escape").decode()


class _Safe:
    """A stream on which whatever is printed is made safe; `bare` is the stream itself."""

    def __init__(self, bare: "IO[str]") -> None:
        self.bare = bare

    def write(self, text: str) -> int:
        return self.bare.write(lines(text))

    def writelines(self, texts: "Iterable[str]") -> None:
        self.bare.writelines(map(lines, texts))

    def __getattr__(self, name: str) -> "Any":
        return getattr(self.bare, name)


def safe(stream: "IO[str] | None") -> "IO[str]":
    """Whatever is printed to it is safe; what the stream's encoding lacks is escaped.

    One that was closed before the program began takes everything and drops it.
    """
    if stream is None:
        # for as long as the program runs
        stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    try:  # noqa: SIM105 - contextlib is slow to import
        stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]
    except (AttributeError, ValueError):  # a notebook's, or one that is detached
        pass
    return _Safe(stream)  # type: ignore[return-value]


def bare_stdout() -> "IO[str]":
    """For colours, which are escapes themselves: whoever writes here makes its text safe itself."""
    stream: IO[str] = getattr(sys.stdout, "bare", sys.stdout)
    return stream
