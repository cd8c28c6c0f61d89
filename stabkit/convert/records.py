"""JSON in the forms that loggers write -> records."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stabkit.convert.naming import STEPS
from stabkit.convert.series import ConvertError, listed
from stabkit.printing import counted


def is_json(start: bytes) -> bool:
    """Return whether a file that begins like this is JSON; some text logs begin with `[` or `{`."""
    first = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    if first[:1] == b"{":
        return first[1:].lstrip()[:1] != b"'"  # as Python prints a dict
    return first[:1] == b"[" and not first[1:].lstrip()[:1].isalnum()


def is_text_below_json(path: Path, start: bytes) -> bool:
    """Return whether complete JSON, such as settings, begins a file of lines that are no JSON."""
    rest = start.decode("utf-8-sig", errors="replace").lstrip()
    while is_json(rest[:99].encode()):
        try:
            rest = rest[json.JSONDecoder().raw_decode(rest)[1] :].lstrip()
        except (ValueError, RecursionError):
            return False
    if not rest:
        return False
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    return 2 * sum(not _is_value(line) for line in lines) >= len(lines)


def _is_value(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def json_records(path: Path, notes: list[str]) -> Iterator[Mapping[str, Any]]:
    """Yield the records of a JSON array, of JSON lines, or of columns as pandas writes them."""
    text = path.read_text(encoding="utf-8-sig")
    try:
        content = json.loads(text)
    except RecursionError:
        raise ConvertError(f"{path}: nested too deeply") from None
    except ValueError:
        yield from _json_lines(path, text, notes)
        return
    if isinstance(content, dict) and isinstance(content.get("log_history"), list):
        content = content["log_history"]  # of Hugging Face's Trainer
    if isinstance(content, dict) and (series := _lists(content, notes)):
        yield from ({name: of[i] for name, of in series.items()} for i in range(_longest(series)))
        return
    if isinstance(content, dict):
        columns = {key: column for key, column in content.items() if isinstance(column, dict)}
        if not columns or len(columns) < len(content):
            yield content
            return
        for row in dict.fromkeys(row for column in columns.values() for row in column):
            yield {key: column[row] for key, column in columns.items() if row in column}
        return
    yield from _objects(content if isinstance(content, list) else [content], notes)


def _objects(records: Sequence[Any], notes: list[str]) -> list[Mapping[str, Any]]:
    """Return the records that are objects; others are counted in the notes."""
    objects: list[Mapping[str, Any]] = [one for one in records if isinstance(one, dict)]
    if other := len(records) - len(objects):
        first = next(i for i, record in enumerate(records, 1) if not isinstance(record, dict))
        notes.append(
            f"{counted(other, 'record')} left out that are no JSON objects (the first: record "
            f"{first})"
        )
    return objects


def _lists(content: Mapping[str, Any], notes: list[str]) -> dict[str, list[Any]]:
    """Return the columns of an object of lists, as of Keras' `history.history`: the longest ones.

    Lists of another length belong to other steps, which are unknown; they are noted.
    """
    lists = {name: of for name, of in flat(content, "") if isinstance(of, list) and len(of) > 2}
    steps = [name for name in STEPS if isinstance(content.get(name), (int, float))]
    if steps or any(isinstance(cell, (list, dict)) for of in lists.values() for cell in of):
        return {}
    longest = {name: of for name, of in lists.items() if len(of) == _longest(lists)}
    if others := [f"{name} ({len(of):,})" for name, of in lists.items() if name not in longest]:
        notes.append(
            f"lists of another length than {_longest(lists):,} left out, since nothing tells their "
            f"steps: {listed(others)}"
        )
    return longest


def _longest(lists: Mapping[str, list[Any]]) -> int:
    return max((len(of) for of in lists.values()), default=0)


def _json_lines(path: Path, text: str, notes: list[str]) -> Iterator[Mapping[str, Any]]:
    """Yield the objects of the lines; a few lines of other text among them are noted."""
    lines = [(i, line) for i, line in enumerate(text.splitlines(), start=1) if line.strip()]
    records, other = [], []
    for number, line in lines:
        try:
            records.append(json.loads(line))
        except (ValueError, RecursionError):
            other.append(number)
    if 2 * len(other) >= len(lines):
        raise ConvertError(f"{path}: line {other[0]} is not JSON")
    if other == [lines[-1][0]]:
        notes.append(f"line {other[0]}, the last, is torn and was left out")
    elif other:
        notes.append(
            f"{counted(len(other), 'line')} left out that are not JSON (the first: line {other[0]})"
        )
    yield from _objects(records, notes)


def flat(record: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield names and values; nested names are joined by dots."""
    for key, value in record.items():
        if isinstance(value, Mapping) and "_type" not in value:
            yield from flat(value, f"{prefix}{key}.")
        else:  # a mapping with `_type` is an image, a histogram, … of W&B
            yield prefix + key, f"<{value['_type']}>" if isinstance(value, Mapping) else value
