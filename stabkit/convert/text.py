"""Text logs: lines of `name: number`, `name=number` and `name number` as training loops print.

Formats known to be read: moco-v3 and PyTorch's ImageNet example (`Epoch: [0][ 10/100]  Loss 6.9
(6.9)`), Megatron (`iteration 10/ 100 | lm loss: 6.9`), nanoGPT (`iter 10: loss 6.9`), llm.c (`s:10
trl:6.9`), OLMo (`[step=10/100]` and indented lines), mmengine, and JSON or a Python dict behind any
prefix.
"""

import ast
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stabkit.convert.naming import STEPS
from stabkit.convert.series import counted

LOOKED_AT = 400  # lines read to tell a text log from a table
_NUMBER = r"[-+]?(?:\d[\d,]*\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|nan|inf(?:inity)?)"
_WORD = r"[A-Za-z_][\w@/.\-]*+"  # possessive: no backtracking, so a long line stays fast
_PAIR = re.compile(
    rf"(?<![\w@/.\-])(?P<name>{_WORD}(?: {_WORD}){{0,5}}+)['\"]?(?:\s*\([A-Za-z/ ]+\))?"
    rf"(?:\s*[:=]\s*|\s+)(?P<number>{_NUMBER})(?![\w.]|:\d)(?:%|\s?(?:ms|s|it/s)\b)?",
    re.IGNORECASE,
)
_UNIT = re.compile(r"(?<=\d)(?:ms|s|%|K|M|B)(?![\w])")
_EPOCH_BATCH = re.compile(
    r"\bEpoch\b[^\[\d]{0,12}\[\s*(\d+)\s*\]\s*\[\s*(\d+)\s*/\s*(\d+)\s*\]", re.I
)
_EVALUATION = re.compile(
    r"\b(test|val|valid|validation|eval)\b[^\[\d]{0,8}\[\s*\d+\s*/\s*\d+\s*\]", re.I
)
_OF_TOTAL = re.compile(r"(?<=\d)\s*/\s*\d+")
_CLOCK = re.compile(
    r"\[?\b\d{4}[-/]\d\d[-/]\d\d[ T]\d\d:\d\d:\d\d[\d.,:+Z]*\]?|\b\d\d/\d\d \d\d:\d\d:\d\d\b"
    r"|\b[A-Z][a-z]{2} +\d+ \d\d:\d\d:\d\d|\b\d+:\d\d(?::\d\d)?(?:\.\d+)?\b|\x1b\[[\d;]*m"
)
_STEP_LETTERS = {"s": "step"}  # of llm.c


def is_log_text(path: Path) -> bool:
    """Return whether most lines with numbers also name them, which the lines of a table do not."""
    named = numbers = 0
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for _, line in zip(range(LOOKED_AT), file, strict=False):
            if re.search(r"\d", line):
                numbers += 1
                named += bool(_PAIR.search(line)) or "{" in line
    return numbers > 0 and named >= numbers / 2


def text_records(path: Path, notes: list[str]) -> Iterator[Mapping[str, Any]]:
    """Yield a record for each line that names a step, joined with the indented lines after it."""
    record: dict[str, Any] = {}
    skipped = progress = 0
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for line in file:
            if not line.strip():
                continue
            if _EVALUATION.search(line):
                progress += 1
                continue
            found = _inside(line) or pairs_of(line)
            if not found:
                skipped += 1
            elif _names_a_step(found):
                if record:
                    yield record
                record = found
            elif record and line[0].isspace():
                record = {**found, **record}
            else:
                skipped += 1
    if record:
        yield record
    if skipped:
        notes.append(f"{counted(skipped, 'line')} left out that name no step")
    if progress:
        notes.append(f"{counted(progress, 'line')} of progress within an evaluation left out")


def pairs_of(line: str) -> dict[str, Any]:
    """Return the names and numbers of a line; in `Loss 6.9 (7.0)` the first number counts.

    `Epoch: [e][i/n]` is the step e * n + i.
    """
    found: dict[str, Any] = {}
    if batch := _EPOCH_BATCH.search(line):
        epoch, at, size = (int(group) for group in batch.groups())
        found |= {"step": epoch * size + at, "epoch": epoch}
        line = line[: batch.start()] + " | " + line[batch.end() :]
    line = _OF_TOTAL.sub("", _CLOCK.sub(" | ", line))
    line = _UNIT.sub(" ", line)
    for pair in _PAIR.finditer(line):
        name = pair["name"].strip().rstrip(".-")
        name = name.removeprefix("INFO ").removeprefix("DEBUG ")
        name = _STEP_LETTERS.get(name, name)
        found.setdefault(name, float(pair["number"].replace(",", "")))
    return found


def _names_a_step(record: Mapping[str, Any]) -> bool:
    return any(name.lower() in STEPS for name in record)


def _inside(line: str) -> dict[str, Any]:
    """Return the object at the end of a line, in JSON or as Python prints a dict."""
    begin, end = line.find("{"), line.rfind("}")
    if begin < 0 or end < begin:
        return {}
    text = line[begin : end + 1]
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, dict):
            return {str(name): value for name, value in found.items()}
    return {}
