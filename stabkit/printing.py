"""Make text from other people safe to show on a terminal, a page or a spreadsheet.

A run's name, settings, events and reasons may come from anybody. Characters that move a cursor, set
a title, fill a clipboard, reorder a line or hide in it are written as escapes, such as `\\x1b` and
`\\u202e`. Where a stream cannot show our own signs, such as `β`, they become plain letters.
"""

import codecs
import os
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import IO, Any, cast

# Control characters; soft hyphen; characters that set the direction of text or have no width; line
# and paragraph separators; tags; surrogates, which stand for bytes that are not text.
_UNSAFE = (
    r"\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    r"\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f"
)
_IN_A_LINE = re.compile(f"[{_UNSAFE}]")
_IN_LINES = re.compile(rf"(?![\t\n])[{_UNSAFE}]")
# Our own signs, for a stream that is not UTF-8; other characters are escaped there.
_PLAIN = {
    **{
        "…": "...",
        "·": "-",
        "→": "->",
        "±": "+/-",
        "\u00d7": "x",
        "\u2013": "-",
        "²": "^2",
        "⁴": "^4",
    },
    **{"⁻": "^-", "¹": "1", "₁": "1", "₂": "2", "ᵗ": "^t", "ᵀ": "^T", "√": "sqrt ", "‖": "||"},
    **{"Σ": "sum", "∂": "d", "≥": ">=", "≤": "<=", "β": "beta", "τ": "tau", "θ": "theta"},
    **{"ξ": "xi", "\u03c3": "sigma", "π": "pi", "μ": "mu", "µ": "mu", "η": "eta", "ε": "eps"},
    **{"λ": "lambda", "━": "-", "─": "-", "●": "*", "▲": "^"},
    **dict(zip("▁▂▃▄▅▆▇█", "_.,-=+*#", strict=True)),
}
GENERATOR = '<meta name="generator" content="stabkit'  # as report.html.j2 has it
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")  # also in their full-width forms


def one_line(text: object) -> str:
    """Return `text` as one line, every unsafe character as its escape."""
    return _IN_A_LINE.sub(_escape, str(text))


def lines(text: object) -> str:
    """Return `text` with its unsafe characters as escapes; line ends and tabs stay."""
    return _IN_LINES.sub(_escape, str(text))


def first_of(names: Iterable[object], most: int, between: str = ", ") -> str:
    """Return the first `most` names as a list, and how many more there are: `a, b and 3 more`."""
    words = list(map(str, names))
    more = f" and {len(words) - most:,} more" if len(words) > most else ""
    return between.join(words[:most]) + more


def counted(number: int, thing: str) -> str:
    """Return a number with its noun: `1 run`, `2 runs`, `2 batches`."""
    ending = "es" if thing.endswith(("ch", "sh", "s", "x")) else "s"
    return f"{number:,} {thing}{'' if number == 1 else ending}"


def csv_cell(value: object) -> object:
    """Return a text as a cell that no spreadsheet takes for a formula; other values unchanged.

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


def _in_plain_signs(error: UnicodeError) -> tuple[str, int]:
    """Return plain letters for what an encoding lacks (an error handler of `codecs`)."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    plain = (_PLAIN.get(sign) or sign.encode("ascii", "backslashreplace").decode() for sign in text)
    return "".join(plain), error.end


codecs.register_error("plain-signs", _in_plain_signs)


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


class _Safe:
    """A stream that makes safe what is printed to it.

    `bare` is the stream itself, `failed` the error of a write that did not reach it.
    """

    def __init__(self, bare: IO[str]) -> None:
        self.bare = bare
        self.failed: OSError | None = None

    def write(self, text: str) -> int:
        try:
            return self.bare.write(lines(text))
        except OSError as error:
            self.failed = error
            raise

    def writelines(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.bare, name)


def safe(stream: IO[str] | None) -> IO[str]:
    """Wrap a stream so that all text is made safe, and plain where its encoding lacks a sign.

    A stream that was closed before the program began is replaced by one that drops everything.
    """
    if stream is None:
        # It stays open for as long as the program runs.
        stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    with suppress(AttributeError, ValueError):  # a notebook's stream, or a detached one
        cast(Any, stream).reconfigure(errors="plain-signs")
    return cast(IO[str], _Safe(stream))


def raise_failed(stream: object) -> None:
    """Raise the error of an earlier write to a safe stream, which its caller may have ignored."""
    if isinstance(stream, _Safe) and stream.failed is not None:
        raise stream.failed


def bare_stdout() -> IO[str]:
    """Return stdout without the wrapper, for colors, which are escapes themselves.

    The caller makes its text safe itself.
    """
    stream: IO[str] = getattr(sys.stdout, "bare", sys.stdout)
    return stream
