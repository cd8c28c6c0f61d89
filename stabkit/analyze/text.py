"""Format plain text: columns of a table, and counts with their noun."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stabkit.printing import one_line

if TYPE_CHECKING:
    import pandas as pd


def aligned(lines: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Return rows of cells as columns of text, flush right except for the columns in `left`."""
    lines = [[one_line(cell) for cell in line] for line in lines]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join(row.rstrip() for row in rows)


def listed(parts: Sequence[str]) -> str:
    """Return parts as one list of a sentence: `a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def layers_called(names: str) -> str:
    """Return names of layers; bare numbers, as in nn.Sequential, are told to be layers."""
    if re.search("[a-zA-Z]", re.sub(r"\b(and|more)\b", "", names)):
        return names
    return f"layer {names}" if re.fullmatch(r"\S+", names) else f"layers {names}"


def times(ratio: float) -> str:
    """Return a ratio in three digits at most: `2.4 times`, `11,300 times` or `1.5e+07 times`."""
    if ratio >= 1e6:
        return f"{ratio:.2g} times"
    return f"{ratio:.1f} times" if ratio < 100 else f"{float(f'{ratio:.3g}'):,.0f} times"


def risen_from(spike: "dict[Any, Any] | pd.Series") -> str:
    """Return what the ratio of a loss spike is to; a long rise has no step that was unexpected."""
    return "its best level before" if spike["long"] else "what was expected"


def shortened(text: str, most: int) -> str:
    """Return a text from anybody as one line of at most `most` characters."""
    line = one_line(" ".join(text.split()))
    return line if len(line) <= most else f"{line[: most - 1].rstrip()}…"
