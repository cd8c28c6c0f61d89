"""One line of a text log: its names and numbers, and where in an epoch it stands."""

import ast
import json
import re
from typing import Any, NamedTuple

from stabkit.convert.naming import EPOCHS, STEPS
from stabkit.convert.spelling import without_c_spelling

_NUMBER = r"[-+]?(?:\d+(?:,\d+)*\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|nan|inf(?:inity)?)"
_WORD = r"[A-Za-z_][\w@/.\-]*"
_NOT_A_WORD = r"(?!(?:nan|inf(?:inity)?)\b)"  # in `loss nan lr 0.1` it is the number
_PAIR = re.compile(
    # A lookahead does not backtrack, so a long line stays fast. A possessive quantifier would do,
    # but Python 3.11.0 to 3.11.4 match groups with one wrongly.
    rf"(?<![\w@/.\-])(?=(?P<name>{_WORD}(?: {_NOT_A_WORD}{_WORD}){{0,5}}))(?P=name)"
    r"['\"]?(?:\s*\([A-Za-z/ ]+\))?"
    rf"(?:\s*[:=]\s*|\s+)(?P<number>{_NUMBER})(?P<scale>(?-i:[kKMB])\b)?(?![\w#]|\.\w|:\d)"
    r"(?:(?P<percent>\s?%)|\s?(?:ms|s|it/s)\b)?",
    re.IGNORECASE,
)
COLOR = re.compile(r"\x1b\[[\d;]*m")  # and bold, as terminals understand it
_UNIT = re.compile(r"(?<=\d)(?:ms|s)(?![\w])")
_SCALE = {"k": "e3", "K": "e3", "M": "e6", "B": "e9"}
_OF_TOTAL = re.compile(  # of whole numbers alone: 3/100, 1,000 / 5,000
    r"(?<![\d.,])(\d+(?:,\d+)*)\s*/\s*\d+(?:,\d+)*(?!\w|\.\d)"
)
_SHARE = re.compile(
    r"(?<![A-Za-z])(accuracy|acc)\b(\s*[:=]?\s*)(\d+)\s*/\s*(\d+)", re.I
)  # Accuracy: 98/100
_CLOCK = re.compile(
    r"\[?\b\d{4}[-/]\d\d[-/]\d\d[ T]\d\d:\d\d:\d\d[\d.,:+Z]*\]?|\b\d\d/\d\d \d\d:\d\d:\d\d\b"
    r"|\b[A-Z][a-z]{2} +\d+ \d\d:\d\d:\d\d|\b\d+:\d\d(?::\d\d)?(?:\.\d+)?\b"
)
_EVALUATION = re.compile(r"\b(test|val|eval|dev)", re.IGNORECASE)
_STEP_LETTERS = {"s": "step"}  # of llm.c

_BATCH = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # Epoch: [0][ 10/100] of moco-v3, mmcv, DeiT; Train: [0/300][10/1251] of Swin
        r"\b(?:epoch|train)\b[^\[\d]{0,12}\[\s*(\d+)\s*(?:/\s*\d+\s*)?\]"
        r"\s*\[\s*(\d+)\s*/\s*(\d+)\s*\]",
        # Train Epoch: 1 [640/60000 (1%)] of PyTorch's MNIST example; Train: 0 [ 9/99 ( 1%)] of timm
        r"\b(?:epoch|train)\b[^\[\d]{0,4}(\d+)\s*\[\s*(\d+)\s*/\s*(\d+)\s*\(",
        # Epoch [1/5], Step [100/600]
        r"\bepoch\b[^\w]{0,4}(\d+)(?:\s*/\s*\d+)?\]?[^\w]{1,4}\b(?:step|iter\w*|batch)\b[^\w]{0,4}"
        r"(\d+)\s*/\s*(\d+)\]?",
        # Epoch 0:  50%|#####     | 100/200 [00:10<00:10, …] of tqdm and Lightning
        r"\bepoch\b[^\w]{0,3}(\d+)(?:/\d+)?\s*:\s*\d+%\|[^|]*\|\s*(\d+)/(\d+)\s*\[",
        # Epoch 0/9 ━━━━━━╸ 100/200 0:00:10 • 0:00:10 12.3it/s of rich and Lightning
        r"\bepoch\b[^\w]{0,3}(\d+)(?:/\d+)?\s+[━╸╺ ]+\s(\d+)/(\d+)\s",
    )
)
# Iter [50/20000] of mmseg; Training [ 10/125000] of DINOv2
_STEP_OF_TOTAL = re.compile(
    r"\b(?:iter(?:ation)?|step|training)\b(?:\(train\))?\s*[:=]?\s*\[\s*(\d+)\s*(?:/\s*\d+)?\s*\]",
    re.IGNORECASE,
)
# [50] training_loss = 6.9 of big_vision
_STEP_BEFORE = re.compile(r"\[(\d+)\]\s+(?=[A-Za-z_][\w/@.\-]* = )")
# what follows `train:  33%|` in  train:  33%|###3  | 165/500 [00:10<00:20, 16.1it/s, loss=0.51]
_BAR = re.compile(r"[^|]*\|\s*(?P<at>\d+)/(?P<size>\d+)\s*\[")
_OF_SAMPLES = re.compile(r"\[\s*(\d+)\s*/\s*(\d+)\s*\]\s*$")  # loss: 2.3  [ 6400/60000]
_KERAS = re.compile(r"^\s*(\d+)/(\d+)\s+(?:\[|-|━)")


class BarLine(NamedTuple):
    """A progress bar at `at` of `size`, its `title`, and the names and numbers of the line."""

    at: int
    size: int
    title: str
    found: dict[str, Any]


class BatchLine(NamedTuple):
    """A batch of an epoch: number `at` of `size`.

    `rest` is the line without these numbers, `title` what stands before them.
    """

    epoch: int
    at: int
    size: int
    rest: str
    title: str = ""


def batch_of(line: str, epoch: int | None = None) -> BatchLine | None:
    """Return the epoch and batch that the line names; `epoch` is that of a headline."""
    for pattern in _BATCH:
        if found := pattern.search(line):
            number, at, size = (int(group) for group in found.groups())
            title = line[: found.start()]
            return BatchLine(number, at, size, f"{title} | {line[found.end() :]}", title)
    if epoch is None:
        return None
    if found := _KERAS.match(line):
        return BatchLine(epoch, int(found[1]), int(found[2]), line[found.end() :])
    if (found := _OF_SAMPLES.search(line)) and pairs_of(line[: found.start()]):
        return BatchLine(epoch, int(found[1]), int(found[2]), line[: found.start()])
    return None


def bar_of(line: str) -> BarLine | None:
    """Return the progress bar of the line if there is one and no value beside it is a step."""
    title, _, drawn = line.partition("%|")
    if not (bar := _BAR.match(drawn)):
        return None
    title = title.rstrip("0123456789")
    found = pairs_of(f"{title} | {drawn[bar.end() :]}")
    if {name.lower() for name in found} & (set(STEPS) - set(EPOCHS)):
        return None
    return BarLine(int(bar["at"]), int(bar["size"]), title, found)


def pairs_of(line: str) -> dict[str, Any]:
    """Return the names and numbers of a line; in `Loss 6.9 (7.0)` the first number counts.

    A number with a comma or `%` is text: `1,000` may be a thousand, and `0,5` a half.
    """
    found: dict[str, Any] = {}
    if step := _STEP_OF_TOTAL.search(line) or _STEP_BEFORE.search(line):
        found["step"] = int(step[1])
        line = line[: step.start()] + " | " + line[step.end() :]
    if "#" in line or "(" in line:
        line = without_c_spelling(line)
    line = _SHARE.sub(_as_fraction, line)
    line = _OF_TOTAL.sub(r"\1", _CLOCK.sub(" | ", line))
    line = _UNIT.sub(" ", line)
    for pair in _PAIR.finditer(line):
        name = pair["name"].strip().rstrip(".-")
        name = name.removeprefix("INFO ").removeprefix("DEBUG ")
        before, _, last = name.rpartition(" ")
        if last.lower() in STEPS and not _EVALUATION.search(before):
            name = last  # `Training step 5`
        name = _STEP_LETTERS.get(name, name)
        if not name.endswith((".py", ".cpp", ".cc")):  # `main.py 214` says who wrote the line
            found.setdefault(name, _value(name, pair))
    return found


def _value(name: str, pair: re.Match[str]) -> float | str:
    """Return the number; with a comma or `%` as it stands, since the column decides what it is."""
    number = pair["number"]
    is_share = pair["percent"] and name.lower() not in STEPS
    if "," in number or is_share:
        return f"{number}%" if is_share else str(number)
    is_exact = "e" not in number.lower() and pair["scale"]
    return float(number + (_SCALE[pair["scale"]] if is_exact else ""))


def _as_fraction(found: re.Match[str]) -> str:
    number, of = int(found[3]), int(found[4])
    return f"{found[1]}{found[2]}{number / of:.9g}" if 0 < of >= number else found[0]


def inside(line: str) -> dict[str, Any]:
    """Return the object at the end of a line, in JSON or as Python prints a dict."""
    begin, end = line.find("{"), line.rfind("}")
    if begin < 0 or end < begin:
        return {}
    text = line[begin : end + 1]
    for read in (json.loads, _python):
        try:
            found = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, dict):
            return {str(name): value for name, value in found.items()}
    return {}


def _python(text: str) -> Any:
    """Return a Python literal; `nan` and `inf`, which Python prints in a dict, are no literals."""
    quoted = re.sub(r"(?<=: )(-?)(nan|inf)(?=[,}])", r"'\1\2'", text)
    return ast.literal_eval(quoted)
