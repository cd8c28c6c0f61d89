"""`stabkit convert`: what kind of log a source is, and the run folders made of it."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import stabkit
from stabkit.convert.layers import stacked
from stabkit.convert.lightning import FILE, is_metrics, metrics_log
from stabkit.convert.mapping import Plan, place
from stabkit.convert.nonfinite import stretches
from stabkit.convert.series import ConvertError, Log, listed
from stabkit.convert.steps import ROW, to_log
from stabkit.convert.tables import Table, read_table
from stabkit.convert.targets import parse_map, refuse_unknown, step_of
from stabkit.convert.tensorboard import is_event_file, read_events
from stabkit.convert.wandb import chart_logs, history_log, is_chart, is_history
from stabkit.rundir import RunDir, hidden_folder
from stabkit.store.writer import Writer

FORMATS = ("tensorboard", "wandb", "lightning", "table")
ONE_STEP = (
    "holds one step: a summary of last values is no run; name the log that has the history, of W&B "
    "`json.dump(list(run.scan_history()), open('history.json', 'w'))`"
)
MOST_LAYERS = 2**15  # depth is 16 bits wide
_MARKS = ("config.yaml", "layers", "scalars", "evals")  # of a run folder


@dataclass(frozen=True)
class Converted:
    """A run folder, written or planned: where it is or would be, of what format, and its plan."""

    folder: Path
    format: str
    plan: Plan


def convert(
    source: Path,
    out: Path,
    pairs: Sequence[str] = (),
    chance: float | None = None,
    n: int | None = None,
    format: str | None = None,
    dry_run: bool = False,
    row_step: bool = False,
) -> list[Converted]:
    """Write `source` as a run folder at `out`, or as several below it; returns what went where.

    `pairs` are `COLUMN=TARGET`; with `row_step` the number of a row is its step; `chance` and `n`
    hold for the evaluations. All is written, or nothing. Raises ConvertError when source or request
    are wrong, OSError when the disk is.
    """
    targets = parse_map(pairs)
    step = step_of(targets)
    if row_step and step is not None:
        raise ConvertError(f"--row-step and --map {step}=step: one of them")
    _check(source, out, chance, n)
    format, logs = read_logs(source, format, ROW if row_step else step)
    names = {name for log in logs for name in [*log.series, *log.left_out]}
    refuse_unknown([t for t in targets if t != step], sorted(names), str(source))
    several = len(logs) > 1
    folders = [Path(name) for name in _folder_names([log.name for log in logs])]
    plans = [place(log, targets, chance, n) for log in logs]
    for plan in plans:
        if len(plan.layers.names) > MOST_LAYERS:
            raise ConvertError(f"{source}: {len(plan.layers.names):,} layers are too many")
    if all(is_one_step(log) for log in logs):
        raise ConvertError(f"{source}: {ONE_STEP}")
    if not any(plan.went for plan in plans):
        left = sorted(f"{name} ({why})" for plan in plans for name, why in plan.left_out.items())
        why = f"; left out: {listed(left)}" if left else ""
        raise ConvertError(f"{source}: holds no series of numbers{why}")
    converted = [
        Converted(out / folder if several else out, format, plan)
        for folder, plan in zip(folders, plans, strict=True)
    ]
    if not dry_run:
        _write_all(source, out, converted)
    return converted


def _check(source: Path, out: Path, chance: float | None, n: int | None) -> None:
    if not (source.is_file() or source.is_dir()):
        raise ConvertError(f"{source}: no such file or folder")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConvertError(f"{out}: is there already and is never written over; name another")
    if chance is not None and not 0 <= chance < 1:
        raise ConvertError(f"--chance {chance:g}: a fraction from 0 on and below 1, as 0.1")
    if n is not None and not 1 <= n < 2**31:
        raise ConvertError(f"--n {n}: the number of samples evaluated, at least 1")
    if source.is_dir() and any((source / mark).exists() for mark in _MARKS):
        raise ConvertError(f"{source}: is a run folder already; `stabkit analyze` reads it")


def read_logs(source: Path, format: str | None, step: str | None) -> tuple[str, list[Log]]:
    """The format, given or seen, and a log a run; `step` is the column of steps, if one is named.

    A folder without logs of its own is searched: every folder below it that has some is a run.
    """
    if source.is_dir():
        found, files = _search(source, format)
        if found == "tensorboard":
            logs = _in_folder(source, files, step, read_events)
            unread = {path.parent for path in source.rglob("*") if is_event_file(path)} - {*files}
            if unread:
                where = listed(sorted(str(path.relative_to(source)) for path in unread))
                logs[0].notes.append(f"not read, event files in folders below: {where}")
            return found, logs
        return found, _in_folder(source, files, step, lambda p: metrics_log(read_table(p), step))
    if is_event_file(source) or format == "tensorboard":
        return "tensorboard", _in_folder(source, [source], step, read_events)
    table = read_table(source)
    names = list(table.columns)
    format = format or _format_of(source, names)
    if format == "wandb":
        if is_chart(names):
            return format, chart_logs(table, step)
        return format, [history_log(table, step, source.stem)]
    return format, [metrics_log(table, step) if format == "lightning" else _plain(table, step)]


def is_one_step(log: Log) -> bool:
    """False when it holds nothing at all: that is said otherwise."""
    steps = {int(step) for series in log.series.values() for step in series.steps}
    return len(steps) == 1


def _plain(table: Table, step: str | None) -> Log:
    return to_log(table, step, table.path.stem)


def _format_of(path: Path, names: list[str]) -> str:
    if is_chart(names) or is_history(names):
        return "wandb"
    return "lightning" if is_metrics(path) else "table"


def _search(folder: Path, format: str | None) -> tuple[str, list[Path]]:
    """The folders with event files, or the CSV files of Lightning, at or else below `folder`."""
    here = list(folder.iterdir())
    below = [path for path in folder.rglob("*") if path.is_file()]
    for paths in (here, below):
        events = sorted({path.parent for path in paths if is_event_file(path)})
        tables = sorted(path for path in paths if path.name == FILE)
        if format == "lightning" or (tables and not events and format is None):
            if tables:
                return "lightning", tables
        elif events and tables and format is None:
            raise ConvertError(
                f"{folder}: holds event files and {FILE}: choose by --format tensorboard or "
                "--format lightning"
            )
        elif events and format in (None, "tensorboard"):
            return "tensorboard", events
    what = f"files of {format}" if format else f"TensorBoard event files or {FILE}"
    raise ConvertError(
        f"{folder}: no {what} in it or below it; a CSV, Parquet or JSON file is named itself"
    )


def _in_folder(
    source: Path, paths: list[Path], step: str | None, read: Callable[[Path], Log]
) -> list[Log]:
    logs = []
    for path in paths:
        if read is read_events and step is not None:
            what = "--row-step" if step == ROW else f"--map {step}=step"
            raise ConvertError(f"{what}: TensorBoard events carry their own step")
        log = read(path)
        if len(paths) > 1:
            folder = path if path.is_dir() else path.parent
            log.name = str(folder.relative_to(source))
        logs.append(log)
    return logs


def _folder_names(names: Sequence[str]) -> list[str]:
    """One folder name a run, whatever the run is called: no separators, no hidden names."""
    taken: dict[str, None] = {}
    for name in names:
        plain = re.sub(r"[^\w.,=+-]", "_", name).lstrip(".")[:100] or "run"
        number, free = 2, plain
        while free in taken:
            number, free = number + 1, f"{plain}-{number}"
        taken[free] = None
    return list(taken)


def _write_all(source: Path, out: Path, converted: Sequence[Converted]) -> None:
    """Everything under a hidden name next to `out`, then renamed: whole, or not there."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with hidden_folder(out) as hidden:
        for run in converted:
            _write(source, hidden / run.folder.relative_to(out), run)
        try:
            hidden.rename(out)
        except OSError as error:
            if not os.path.lexists(out):
                raise  # of the disk; else something has been put there meanwhile
            raise ConvertError(f"{out}: cannot be put there ({error.strerror})") from None


def _write(source: Path, folder: Path, run: Converted) -> None:
    writer = Writer(folder, folder.name)
    plan = run.plan
    if plan.layers.names:
        steps, values, missing = stacked(plan.layers)
        writer.add_layers(steps, plan.layers.names, values, missing)
    for name, one in plan.scalars.items():
        writer.add_scalars(one.steps, name, one.values)
    for metric, evaluations in plan.evals.items():
        for e in evaluations:
            writer.add_accuracies(
                e.series.steps, metric, e.series.values, e.chance, e.n, e.k, e.temperature
            )
    writer.flush()
    rundir = RunDir(folder)
    rundir.write_meta({"converted": _origin(source, run)})
    for step, names in stretches(plan):
        rundir.append_event("nonfinite", step, **names)


def _origin(source: Path, run: Converted) -> dict[str, Any]:
    return {
        "source": source.name,
        "format": run.format,
        "stabkit": stabkit.__version__,
        "went": [list(row) for row in run.plan.went],
        "left_out": run.plan.left_out,
        "notes": run.plan.notes,
    }
