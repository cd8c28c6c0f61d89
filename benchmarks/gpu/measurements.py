"""Keep on disk what a part of the GPU program has measured so far.

A part that was killed, or ran out of time, continues after its last measurement. Measurements made
with other sources, on another device or with `--quick` do not count.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.circumstances import find_circumstances


@dataclass
class Measurement:
    """Rows of cells under the part's columns (`lines`), and the numbers behind them (`values`)."""

    lines: list[list[str]]
    notes: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    failed: bool = False


class Part:
    """The measurements of one part, in one file that is written after each measurement."""

    def __init__(
        self,
        file: Path,
        command: str,
        circumstances: dict[str, Any],
        columns: Sequence[str],
    ) -> None:
        self.file = file
        self._content: dict[str, Any] = {
            "circumstances": circumstances, "command": command, "columns": list(columns),
            "complete": False, "measurements": {},
        }  # fmt: skip
        before = read(file)
        if before is not None and same(before["circumstances"], circumstances):
            self._content = before | {"command": command, "columns": list(columns)}

    def has(self, name: str) -> bool:
        """Tell whether a measurement exists. One that failed does not count and is tried again."""
        found = self._content["measurements"].get(name)
        return found is not None and not found["failed"]

    def values(self, name: str) -> dict[str, Any]:
        found = self._content["measurements"].get(name)
        return {} if found is None else found["values"]

    def add(self, name: str, measurement: Measurement) -> None:
        self._content["measurements"][name] = asdict(measurement)
        self._write()
        for line in measurement.lines:
            print(" | ".join(line), flush=True)
        for note in measurement.notes:
            print(note, flush=True)

    def finish(self) -> None:
        """Mark the part as complete. Exit with 1 instead if a measurement failed."""
        failed = [m for m in self._content["measurements"].values() if m["failed"]]
        self._content["complete"] = not failed
        self._write()
        if failed:
            raise SystemExit(1)

    def _write(self) -> None:
        self._content["written"] = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
        self.file.parent.mkdir(parents=True, exist_ok=True)
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps(self._content, indent=1) + "\n")
        os.replace(new, self.file)


def read(file: Path) -> dict[str, Any] | None:
    if not file.exists():
        return None
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Tell whether two measurements may share a table."""
    return all(one.get(key) == other.get(key) for key in ("sources", "device", "quick"))


def options(description: str, *, needs_results: bool = True) -> argparse.ArgumentParser:
    """Return a parser of the options that every part takes."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for a rehearsal")
    parser.add_argument("--quick", action="store_true", help="small; the figures mean nothing")
    parser.add_argument("--results", type=Path, required=needs_results, metavar="FOLDER")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="CIFAR-10's two Parquet files")
    parser.add_argument("--seconds", type=float, default=540, help="time that this call has")
    parser.add_argument("--steps", type=int, help="of each run of the study; default: the preset's")
    return parser


def open_part(name: str, given: argparse.Namespace, columns: Sequence[str]) -> Part:
    quick = " --quick" if given.quick else ""
    device = "" if given.device == "cuda" else f" --device {given.device}"
    command = f"python -m benchmarks.gpu.run --part {name}{device}{quick}"
    facts = find_circumstances(given.device, given.quick)
    return Part(given.results / f"{name}.json", command, facts, columns)
