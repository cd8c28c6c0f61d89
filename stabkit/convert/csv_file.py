"""CSV and similar text tables -> columns of numbers."""

import csv
import io
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv

from stabkit.convert.arrow_table import from_arrow
from stabkit.convert.columns import FileTable
from stabkit.convert.series import ConvertError
from stabkit.convert.spelling import is_number
from stabkit.printing import counted

DELIMITERS = ";\t,|"
_EXCEL = "sep="  # what Excel needs to know stands above the names


def read_csv(path: Path) -> FileTable:
    """Read columns between commas, semicolons, tabs, bars or blanks, below comments of `#`.

    Between semicolons or tabs a comma is the decimal comma.
    """
    source = _without_comments(path)
    with _opened(source) as file:
        header = file.readline()
    delimiter = max(DELIMITERS, key=header.count) if any(c in header for c in DELIMITERS) else ","
    if delimiter not in header and len(header.split()) > 1:
        # columns between blanks, as numpy.savetxt writes them
        with _opened(source) as file:
            source = io.BytesIO("\n".join(",".join(line.split()) for line in file).encode())
    names = _header(path, source, delimiter)
    numbers_only = _names_of_numbers(path, names)
    skipped: list[tuple[int, int]] = []  # number of the row, and of its cells

    def skip(row: Any) -> str:
        skipped.append((row.number or 0, row.actual_columns))
        return "skip"

    table = _read(source, delimiter, numbers_only, names, skip)
    longer = _longer_to_the_end(skipped, len(names), table.num_rows)
    if longer:
        skipped.clear()
        table = _read(_cut(source, delimiter, len(names)), delimiter, numbers_only, names, skip)
    result = from_arrow(path, table, delimiter in ";\t")
    if longer:
        result.notes.append(
            f"{counted(len(longer), 'row')} with more cells than there are names: the cells beyond "
            f"them left out (the first: row {longer[0]})"
        )
    if skipped:
        result.notes.append(
            f"{counted(len(skipped), 'row')} left out that have too few or too many cells (the "
            f"first: row {skipped[0][0]} has {skipped[0][1]}, and there are {len(names)} names)"
        )
    return result


def _read(
    source: Path | io.BytesIO,
    delimiter: str,
    numbers_only: list[str] | None,
    names: list[str],
    skip: Callable[[Any], str],
) -> pa.Table:
    """Return all cells as text. `skip` hears of rows that do not have a cell for each name."""
    # opened here, because Arrow takes no name that is not UTF-8
    with source.open("rb") if isinstance(source, Path) else io.BytesIO(source.getvalue()) as file:
        return pa_csv.read_csv(
            file,
            # one thread: only then skipped rows have a number
            read_options=pa_csv.ReadOptions(
                use_threads=False, block_size=1 << 24, column_names=numbers_only
            ),
            parse_options=pa_csv.ParseOptions(
                delimiter=delimiter, newlines_in_values=True, invalid_row_handler=skip
            ),
            # all as text: Arrow guesses types from the first rows and would refuse later ones
            convert_options=pa_csv.ConvertOptions(
                null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=True,
                column_types=dict.fromkeys(numbers_only or names, pa.string()),
            ),
        )  # fmt: skip


def _longer_to_the_end(skipped: list[tuple[int, int]], width: int, read: int) -> list[int]:
    """Return the rows with more cells than names if they are the last ones, all in a row.

    Then a metric came in mid-run, and the cells that have names count. Rows here and there have an
    extra cell for another reason, such as a comma inside a number. `read`: rows that fit.
    """
    longer = [row for row, cells in skipped if cells > width]
    last = read + len(skipped) + 1  # the names are row 1
    return longer if read and longer == list(range(last - len(longer) + 1, last + 1)) else []


def _cut(source: Path | io.BytesIO, delimiter: str, width: int) -> io.BytesIO:
    """Return the rows with the first `width` cells of each."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter)
    with _opened(source) as file:
        writer.writerows(row[:width] for row in csv.reader(file, delimiter=delimiter))
    return io.BytesIO(text.getvalue().encode())


def _without_comments(path: Path) -> Path | io.BytesIO:
    """Return the file without the comments above its names; the last comment may be the names."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        if not file.read(len(_EXCEL)).startswith(("#", _EXCEL)):
            return path
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    comments = list(takewhile(lambda line: line.startswith(("#", _EXCEL)), lines))
    below = lines[len(comments) :]
    names = comments[-1].lstrip("# ")
    first = _split(below[0]) if below else []
    if len(_split(names)) == len(first) and any(is_number(cell) for cell in first):
        below = [names, *below]
    return io.BytesIO("\n".join(below).encode())


def _split(line: str) -> list[str]:
    """Return the cells of a line, between whatever separates them."""
    delimiter = max(DELIMITERS, key=line.count)
    return line.split(delimiter) if delimiter in line else line.split()


def _opened(source: Path | io.BytesIO) -> io.TextIOWrapper:
    binary = io.BytesIO(source.getvalue()) if isinstance(source, io.BytesIO) else source.open("rb")
    return io.TextIOWrapper(binary, encoding="utf-8-sig", newline="")


def _header(path: Path, source: Path | io.BytesIO, delimiter: str) -> list[str]:
    """Return the cells of the first row."""
    with _opened(source) as file:
        try:
            return next(csv.reader(file, delimiter=delimiter), [])
        except csv.Error as error:
            raise ConvertError(f"{path}: row 1, of names: {error}") from None


def _names_of_numbers(path: Path, header: list[str]) -> list[str] | None:
    """Return names for the columns if the first row has none: the file's own, or their numbers."""
    if not header or not all(is_number(cell) for cell in header):
        return None
    return [path.stem] if len(header) == 1 else [f"column {i + 1}" for i in range(len(header))]
