"""Numbers as other programs spell them: `1,234`, `71.3%`, C's `-1.#IND`, `tensor(2.3)`."""

import math
import re
from collections.abc import Sequence
from typing import Any

PERCENT = "in percent by its sign, divided by 100"
_COMMA = re.compile(r"[-+]?\d+(?:,\d+)+(?:\.\d*)?(?:e[-+]?\d+)?", re.IGNORECASE)
_THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d*)?")
# European thousands, and a decimal comma: 1.234,56
_POINTS = re.compile(r"[-+]?[1-9]\d{0,2}(?:\.\d{3})+,\d+")
_AROUND = ' \t\r\n"'  # `1, "2"`: a quote after a blank is part of the cell
_OF_C = {"-1.#ind": "nan", "1.#ind": "nan", "1.#qnan": "nan", "-1.#qnan": "nan", "-nan(ind)": "nan",
         "nan(ind)": "nan", "1.#inf": "inf", "-1.#inf": "-inf"}  # fmt: skip
# C prints zeros behind them, as many as decimals were asked for: -1.#IND00
_C_NUMBER = re.compile(
    rf"(?<![\w.])({'|'.join(map(re.escape, sorted(_OF_C, key=len, reverse=True)))})0*(?![\w.])",
    re.IGNORECASE,
)
_ONE = r"([-+]?(?:\d++\.?+\d*+(?:e[-+]?\d++)?|\.\d++|nan|inf))"  # possessive: no backtracking
# tensor(2.3, device='cuda:0', grad_fn=<NllLossBackward0>), np.float64(2.3), Array([2.3], dtype=…)
_WRAPPED = re.compile(
    rf"(?<![\w.])(?:\w++\.)*(?:tensor|array|b?float\d+|u?int\d+)"
    rf"\(\s*(?:{_ONE}|\[\s*{_ONE}\s*\])\s*(?:,\s*\w+=[^()]*)?\)",
    re.IGNORECASE,
)


def unwrapped(text: str) -> str:
    """Return a text with the number in place of a tensor or array of one number."""
    return _WRAPPED.sub(lambda found: found[1] or found[2], text) if "(" in text else text


def without_c_spelling(text: str) -> str:
    """Return a text with `nan` and `inf` in place of what C prints for them."""
    return _C_NUMBER.sub(lambda found: _OF_C[found[1].lower()], text)


def numbers_of(
    cells: Sequence[Any], decimal_comma: bool = False
) -> tuple[list[float | None], list[str]]:
    """Return the number in each cell of a column, None where there is none, and remarks.

    A comma is between thousands if all cells with one may be read so, else it is the decimal comma;
    with `decimal_comma`, as in files whose columns are between semicolons, it always is. If every
    cell ends in `%`, the numbers are divided by 100.
    """
    texts = [cell.strip(_AROUND) for cell in cells if isinstance(cell, str)]
    commas = [text.rstrip("% ") for text in texts if "," in text]
    commas = [text for text in commas if _COMMA.fullmatch(text)]
    thousands = all(_THOUSANDS.fullmatch(text) for text in commas) and (
        not decimal_comma or any(text.count(",") > 1 or "." in text for text in commas)
    )
    in_percent = [_number(text, thousands) for text in texts if text.endswith("%")]
    shares = sum(number is not None and math.isfinite(number) for number in in_percent)
    numbers = [_number(cell, thousands) for cell in cells]
    remarks = []
    if commas:
        what = "a comma between thousands" if thousands else "a decimal comma"
        remarks.append(f"{what}, as in {commas[0]!r}")
    finite = sum(number is not None and math.isfinite(number) for number in numbers)
    if shares and shares == finite:
        numbers = [None if number is None else number / 100 for number in numbers]
        remarks.append(PERCENT)
    elif shares:
        remarks.append("some cells have the sign %, which was ignored")
    return numbers, remarks


def is_number(cell: str) -> bool:
    """Return whether a cell is a number in any spelling."""
    return _number(cell, thousands=False) is not None or _number(cell, thousands=True) is not None


def _number(cell: Any, thousands: bool) -> float | None:
    """Return a JSON value or a CSV cell as a number, spelled as in Python, JavaScript, R or C."""
    if not isinstance(cell, str):
        return _float(cell) if isinstance(cell, (int, float)) else None
    text = unwrapped(cell.strip(_AROUND)).lower()
    if text in ("true", "false"):
        return float(text == "true")
    text = _OF_C.get(text, text)
    if "," in text or text.endswith("%"):
        text = text.removesuffix("%").rstrip()
        if _POINTS.fullmatch(text):
            text = text.replace(".", "").replace(",", ".")
        elif thousands:
            text = text.replace(",", "") if _THOUSANDS.fullmatch(text) else text
        elif text.count(",") == 1 and _COMMA.fullmatch(text) and "." not in text:
            text = text.replace(",", ".")
    return _float(text)


def _float(value: float | str) -> float | None:
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
