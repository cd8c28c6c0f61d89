"""Text logs: lines of `name: number`, `name=number` and `name number` as training loops print.

docs/convert.md names the programs whose lines are known to be read. JSON or a Python dict may stand
behind any prefix.
"""

import re
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from stabkit.convert.naming import EPOCHS, STEPS
from stabkit.convert.pairs import COLOR, BarLine, bar_of, batch_of, inside, pairs_of
from stabkit.convert.series import listed
from stabkit.convert.spelling import unwrapped
from stabkit.printing import counted
from stabkit.store.accuracies import is_held_out

LOOKED_AT = 400  # lines at the start, and as many at the end, to tell a text log from a table
MANY_ROWS = 10
_HEADLINE = re.compile(r"^\W*Epoch\W{1,2}(\d+)\s*(?:/\s*\d+)?\W*$", re.I)
_PROGRESS = re.compile(  # `Test: [ 10/50]`: running means within an evaluation
    r"\b(test|val|valid|validation|eval)\b[^\[\d(]{0,8}\[\s*\d+\s*/\s*\d+\s*\]", re.I
)
# `Epoch(val) [3][79/79]  accuracy/top1: 34.5` of mmcv and mmengine; ` * Acc@1 31.5` of PyTorch
_MM_EVALUATION = re.compile(r"\b(?:Epoch|Iter)\((val|test)\)\s*\[\s*(\d+)[\s\d/\]\[]*\]\s*")
_STAR = re.compile(r"(?:^|\s)\*\s+(?=(?:acc|prec|top)\w*@?\d?)", re.I)
_PHASE = re.compile(
    r"^\W*(train|training|val|valid|validation|test|eval)\b(?: set)?(?=[\])]?\s*:?\s)", re.I
)
# `Test Error:` of PyTorch's tutorial, above a line of its numbers
_PHASE_LINE = re.compile(
    r"^\W*(train|training|val|valid|validation|test|eval)\b[a-z ]*:\s*$", re.IGNORECASE
)
_EVALUATES = re.compile(  # in the title of a progress bar
    r"\b(test(ing)?|val|valid(ation|ating)?|eval(uation|uating)?|dev|sanity)\b", re.IGNORECASE
)
_OF_EVALUATION = re.compile(_EVALUATES.pattern + r"\W*$", re.IGNORECASE)  # Val Epoch 1: 3/20
_CLOCKS = {"time", "data_time", "eta", "memory", "data"}


class _Reader:
    """What was read so far. A row of `batch` form names epoch and batch, as in `Epoch: [0][1/9]`.

    `last` is the step of the last row of training, and `open` the row that may go on. `bar` is the
    last line of a progress bar that names no epoch, and `bars` how many were full before it.
    """

    def __init__(self, every_line: bool) -> None:
        self.every_line = every_line
        self.rows: list[tuple[bool, dict[str, Any]]] = []
        self.open: dict[str, Any] | None = None
        self.is_headline = False
        self.last: dict[str, Any] = {}
        self.phase = ""
        self.epoch: int | None = None
        self.first_epoch: int | None = None
        self.bar: BarLine | None = None
        self.bars = self.other_bars = 0
        self.skipped = self.progress = 0

    def read(self, line: str) -> None:
        if headline := _HEADLINE.match(line):
            self.epoch = int(headline[1])
            self.phase = ""
        if phase := _PHASE_LINE.match(line):
            self.phase = f"{phase[1]}: "
            return
        if self.phase and line[0].isspace():
            line = self.phase + line.lstrip()
        else:
            self.phase = ""
        if "(" in line and (found := _MM_EVALUATION.search(line)):
            values = pairs_of(line[found.end() :])
            kept = {name: v for name, v in values.items() if name not in _CLOCKS}
            epoch = int(found[2]) if found[0].startswith("Epoch") else None
            self._evaluation({f"{found[1]}/{name}": v for name, v in kept.items()}, epoch)
        elif "*" in line and (star := _STAR.search(line)):
            values = pairs_of(line[star.end() :])
            self._evaluation({f"test/{name}": value for name, value in values.items()})
        elif "[" in line and _PROGRESS.search(line):
            self.progress += 1
        elif "/" in line and (batch := batch_of(line, self.epoch)):
            if _OF_EVALUATION.search(batch.title):
                self.progress += 1
                return
            if self.first_epoch is None:
                self.first_epoch = batch.epoch
            number = batch.epoch - (self.first_epoch == 1)  # epochs count from 0, or else from 1
            at = {"step": number * batch.size + batch.at, "epoch": batch.epoch}
            self._row({**pairs_of(batch.rest), **at}, True)
        elif "%|" in line and (bar := bar_of(line)):
            self._bar(bar)
        else:
            self._other(line)

    def _bar(self, bar: BarLine) -> None:
        """Add a row at the place of the bar; one that begins again behind a full one counts on.

        A bar of another length than the first is of something else, such as an evaluation.
        """
        before = self.bar or bar
        if not bar.found:
            self.skipped += 1
        elif _EVALUATES.search(bar.title):
            self.progress += 1
        elif bar.size != before.size:
            self.other_bars += 1
        else:
            self.bars += bar.at < before.at == before.size
            self.bar = bar
            below = self.is_headline
            self._row({**bar.found, "step": self.bars * bar.size + bar.at}, False)
            self.is_headline = below  # the lines below a headline go on, behind its bar

    def _other(self, line: str) -> None:
        found = inside(line) or pairs_of(line)
        names = {name.lower() for name in found}
        if not found:
            self.skipped += 1
        elif names & set(STEPS) and _is_of_evaluation(line):
            self._evaluation_at_own_step(line, found)
        elif names & set(STEPS):
            if self.last and not names & (set(STEPS) - set(EPOCHS)):
                found |= self.last  # a summary of an epoch stands at the last step before it
            self._row(found, False)
            self.is_headline = names <= set(EPOCHS)
        elif self.open is not None and (line[0].isspace() or self.is_headline):
            for name, value in _with_phase(line, found).items():
                self.open.setdefault(name, value)
            self.last = _step_of(self.open) or self.last
        elif held_out := {n: v for n, v in _with_phase(line, found).items() if is_held_out(n)}:
            self._evaluation(held_out)
        elif self.every_line:
            self._row(found, False)
        else:
            self.skipped += 1

    def _row(self, found: dict[str, Any], is_batch: bool) -> None:
        if not found.keys() <= _step_of(found).keys():  # else it may be a setting, `step=1`
            self.last = _step_of(found) or self.last
        self.open, self.is_headline = found, False
        self.rows.append((is_batch, found))

    def _evaluation_at_own_step(self, line: str, found: dict[str, Any]) -> None:
        """Add a row of `[Val] Epoch 3: loss 0.4`; a step of training is better than an epoch."""
        own = {name: v for name, v in found.items() if name.lower() in STEPS}
        values = {name: v for name, v in found.items() if name not in own}
        at = own if _step_of(own) else self.last or own
        self.rows.append((True, {**at, **_with_phase(line, values)}))

    def _evaluation(self, found: dict[str, Any], epoch: int | None = None) -> None:
        """Add a row of an evaluation: at the last step of training, or else at its epoch."""
        of_open = {} if self.open is None else self.open
        at = (
            {k: v for k, v in of_open.items() if k.lower() in EPOCHS}
            if epoch is None
            else {"epoch": epoch}
        )
        at = self.last or at
        if not found:
            self.progress += 1
        elif at or self.every_line:
            self.rows.append((True, {**at, **found}))
        else:
            self.skipped += 1


def _step_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of a row that count steps, not epochs."""
    return {n: v for n, v in row.items() if n.lower() in STEPS and n.lower() not in EPOCHS}


def is_log_text(path: Path) -> bool:
    """Return whether most lines with numbers also name them, which the lines of a table do not.

    The start and the end of the file are looked at: some logs begin with the code of the program.
    """
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        start = list(islice(file, LOOKED_AT))
        end = list(deque(file, LOOKED_AT))
    return _names_numbers(start) or _names_numbers(end)


def _names_numbers(lines: list[str]) -> bool:
    lines = [unwrapped(COLOR.sub("", line)) for line in lines]
    numbers = [line for line in lines if re.search(r"\d", line)]
    named = sum(bool("{" in line or pairs_of(line) or batch_of(line)) for line in numbers)
    return 0 < len(numbers) <= 2 * named


def text_records(
    path: Path, notes: list[str], every_line: bool = False
) -> Iterator[Mapping[str, Any]]:
    """Yield a record for each line that names a step, joined with the lines that belong to it.

    If lines name epoch and batch, other lines with a step are settings and left out. With
    `every_line` a line of numbers needs no step.
    """
    reader = _Reader(every_line)
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for line in _lines(file):
            reader.read(line)
    by_batch = reader.first_epoch is not None
    rows = [row for is_batch, row in reader.rows if is_batch or not by_batch or _at_epoch(row)]
    skipped = reader.skipped + len(reader.rows) - len(rows)
    if skipped:
        notes.append(f"{counted(skipped, 'line')} left out that name no step")
    if reader.progress:
        notes.append(
            f"{counted(reader.progress, 'line')} of progress within an evaluation left out"
        )
    if reader.bar is not None and reader.other_bars:
        notes.append(
            f"{counted(reader.other_bars, 'line')} left out of progress bars of another length "
            f"than {reader.bar.size:,}, that of the first"
        )
    yield from _without_settings(rows, notes)


def _without_settings(rows: list[dict[str, Any]], notes: list[str]) -> Iterator[Mapping[str, Any]]:
    """Yield the rows without names that only one row has, such as those of printed settings."""
    found = Counter(name for row in rows for name in row)
    once = {name for name, count in found.items() if count == 1 and len(rows) >= MANY_ROWS}
    if once:
        notes.append(
            f"{counted(len(once), 'name')} left out that only one line has: "
            f"{listed(sorted(once), 4)}"
        )
    yield from ({name: v for name, v in row.items() if name not in once} for row in rows)


def _lines(file: TextIO) -> Iterator[str]:
    """Yield the lines that are not blank, without colors and with the numbers of tensors.

    A line also ends where a progress bar moves back.
    """
    for line in file:
        yield from (unwrapped(part) for part in COLOR.sub("", line).split("\x08") if part.strip())


def _at_epoch(row: Mapping[str, Any]) -> bool:
    """Return whether a row is a summary of an epoch at a step of training."""
    names = {name.lower() for name in row}
    return bool(names & set(EPOCHS)) and "step" in names


def _is_of_evaluation(line: str) -> bool:
    phase = _PHASE.match(line)
    return phase is not None and not phase[1].lower().startswith("train")


def _with_phase(line: str, found: dict[str, Any]) -> dict[str, Any]:
    """Return the names with the word that the line begins with: `val Loss: 0.2 Acc: 0.9`."""
    phase = _PHASE.match(line)
    if phase is None:
        return found
    word = phase[1].lower()
    return {n if word in n.lower() else f"{word}/{n}": v for n, v in found.items()}
