"""Time two things side by side, and publish the rows of a benchmark's table.

A script calls `parser`, then `paired` for each comparison, then `publish`. The two sides of a ratio
take turns in one run, so that a machine that slows down slows both.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.lib.timing import Interval, median_interval

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ("torch", "torchvision", "timm", "numpy")


@dataclass(frozen=True)
class Row:
    """One comparison. `ratio` is `value` over `peer_value` by pairs, with a 95 % interval."""

    what: str
    peer: str
    value: float
    peer_value: float
    unit: str
    ratio: Interval
    better: Literal["at least", "at most"]
    goal: float | None = None  # None: no goal
    note: str = ""

    @property
    def met(self) -> bool | None:
        return self.within(0.0)

    def within(self, margin: float) -> bool | None:
        """Tell whether the ratio meets the goal, give or take the share `margin` of it."""
        if self.goal is None:
            return None
        if self.better == "at least":
            return self.ratio.middle >= self.goal * (1 - margin)
        return self.ratio.middle <= self.goal * (1 + margin)


@dataclass(frozen=True)
class Times:
    """The seconds of each side, pair by pair."""

    ours: Sequence[float]
    peer: Sequence[float]

    def row(
        self,
        what: str,
        peer: str,
        better: Literal["at least", "at most"],
        goal: float | None = None,
        *,
        items: float | None = None,
        unit: str = "ms",
        note: str = "",
    ) -> Row:
        """Return a row of times in ms or, given `items` per call, of rates (items per second)."""
        if items is None:
            ratio = [a / b for a, b in zip(self.ours, self.peer, strict=True)]
            value, peer_value = (1000 * statistics.median(t) for t in (self.ours, self.peer))
        else:
            ratio = [b / a for a, b in zip(self.ours, self.peer, strict=True)]
            value, peer_value = (items / statistics.median(t) for t in (self.ours, self.peer))
        interval = median_interval(ratio)
        return Row(what, peer, value, peer_value, unit, interval, better, goal, note)


def paired(
    ours: Callable[[], Any],
    peer: Callable[[], Any],
    pairs: int,
    *,
    calls: int = 1,
    device: torch.device | None = None,
) -> Times:
    """Time both in turns, `calls` calls a block, after one uncounted pair: seconds per call."""
    times: tuple[list[float], list[float]] = ([], [])
    for pair in range(pairs + 1):
        sides = ((0, ours), (1, peer)) if pair % 2 else ((1, peer), (0, ours))
        for side, function in sides:
            seconds = _block(function, calls, device)
            if pair:
                times[side].append(seconds / calls)
    return Times(*times)


def _block(function: Callable[[], Any], calls: int, device: torch.device | None) -> float:
    cuda = device is not None and device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(calls):
        function()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser of the options that every benchmark takes and `publish` needs."""
    options = argparse.ArgumentParser(description=description.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="seconds; fewer pairs, wider spread")
    options.add_argument("--device", default="cpu", help="cpu or cuda")
    options.add_argument("--threads", type=int, default=1, help="of torch, on the CPU")
    options.add_argument("--json", type=Path, metavar="FILE", help="the rows, for bench.py")
    return options


def publish(
    rows: Sequence[Row],
    given: argparse.Namespace,
    peers: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> None:
    """Print the table with its circumstances, and write it as JSON if asked.

    `peers`: packages whose versions are listed beside torch's; `notes`: paragraphs below the table.
    """
    arguments = list(sys.argv[1:])
    if given.json is not None:
        at = arguments.index("--json") if "--json" in arguments else None
        if at is not None:
            del arguments[at : at + 2]
    script = Path(sys.argv[0]).resolve().relative_to(ROOT).with_suffix("")
    command = " ".join(["python -m", ".".join(script.parts), *arguments])
    content = {
        "command": command,
        "circumstances": circumstances(given, peers),
        "rows": [asdict(row) | {"ratio": list(row.ratio)} for row in rows],
        "notes": list(notes),
    }
    print(markdown(content))
    if given.json is not None:
        given.json.write_text(json.dumps(content, indent=1))


def circumstances(given: argparse.Namespace, peers: Sequence[str] = ()) -> str:
    device = torch.cuda.get_device_name() if given.device.startswith("cuda") else "CPU"
    versions = ", ".join(f"{name} {_version(name)}" for name in (*VERSIONS, *peers))
    python = platform.python_version()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = f"{given.threads} thread{'s' if given.threads > 1 else ''} of {cores} cores"
    day = time.strftime("%Y-%m-%d")
    return f"{device}, {threads}, Python {python}, {versions}; {day}"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def read_rows(content: dict[str, Any]) -> list[Row]:
    return [Row(**row | {"ratio": Interval(*row["ratio"])}) for row in content["rows"]]


def markdown(content: dict[str, Any]) -> str:
    """Return the command, its circumstances, the table and its notes as Markdown."""
    lines = [
        f"`{content['command']}` ({content['circumstances']}):",
        "",
        "| what | peer | value | peer's value | ratio (95 %) | goal | met |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in read_rows(content):
        what = f"{row.what}; {row.note}" if row.note else row.what
        values = " | ".join(f"{_short(v)} {row.unit}".rstrip() for v in (row.value, row.peer_value))
        lines.append(f"| {what} | {row.peer} | {values} | {row_cells(row)} |")
    for note in content["notes"]:
        lines += ["", note]
    return "\n".join(lines)


def row_cells(row: Row) -> str:
    """Return the ratio, the goal and whether it is met, as cells of a table."""
    goal = "" if row.goal is None else f"{row.better} {row.goal:g}"
    met = {None: "", True: "yes", False: "**no**"}[row.met]
    ratio = f"{row.ratio.middle:.3g} ({row.ratio.low:.3g}..{row.ratio.high:.3g})"
    return f"{ratio} | {goal} | {met}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
