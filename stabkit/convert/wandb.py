"""Exports of Weights & Biases: a history (one row per log call), or the CSV of a chart."""

import numpy as np

from stabkit.convert.columns import Column, FileTable
from stabkit.convert.naming import STEPS
from stabkit.convert.series import ConvertError, Log, shown
from stabkit.convert.steps import Steps, find_steps, silent, step_column, to_log
from stabkit.printing import counted

CLOCK = ("_runtime", "_timestamp", "_wandb")
RANGE = ("__MIN", "__MAX")
PERIODS, LAST = 3, 20  # a curve is shorter if it lacks 3 values, at the largest of 20 distances


def is_history(names: list[str]) -> bool:
    return "_step" in names


def is_chart(names: list[str]) -> bool:
    """Return whether these are the columns of a chart.

    They are `Step`, or another axis, and `RUN - METRIC`, mostly with the `__MIN` and `__MAX` of
    what W&B averaged.
    """
    if any(" - " in name and name.endswith(RANGE) for name in names):
        return True
    axis = names[0].lower() if names else ""
    is_axis = axis in STEPS or axis.startswith(("relative time", "wall time"))
    return is_axis and len(names) > 1 and all(" - " in name for name in names[1:])


def history_log(table: FileTable, asked: str | None, row_step: bool, name: str) -> Log:
    """Return the history as a log, without its columns of time."""
    log = to_log(table, asked, row_step, name)
    for column in list(log.series):
        if column.split(".")[0] in CLOCK:
            del log.series[column]
            log.left_out[column] = "the clock"
    return log


def chart_logs(table: FileTable, asked: str | None, row_step: bool) -> list[Log]:
    """Return one log per run; the name of a run stands before ` - ` in the columns."""
    axis = None if row_step else step_column(table, asked)
    runs: dict[str, dict[str, str]] = {}
    for column in table.columns:
        if column != axis and " - " in column and not column.endswith(RANGE):
            run, metric = column.rsplit(" - ", 1)
            runs.setdefault(run, {})[metric] = column
    logs = [_chart_log(table, asked, axis, run, metrics, row_step) for run, metrics in runs.items()]
    averaged = sum(_is_averaged(table, column) for m in runs.values() for column in m.values())
    if averaged and logs:
        logs[0].notes.append(
            f"{counted(averaged, 'column')} differ from their __MIN and __MAX: W&B averaged over "
            "steps and a short spike or dip may be gone; the history has every value"
        )
    if logs and (row_step or axis is not None):
        _note_blanks(logs, find_steps(table, asked, row_step))
    return logs


def _note_blanks(logs: list[Log], rows: Steps) -> None:
    """Note steps at which no run has a value, and runs that end before others.

    Where the chart has one run, its steps go on without values. A blank beside values of other runs
    says nothing: their steps need not be steps of this run.
    """
    every = {f"{log.name} {name}": one for log in logs for name, one in log.series.items()}
    without = silent(every, rows.steps[rows.known])
    end = max((int(one.steps.max()) for one in every.values() if one.steps.size), default=0)
    for log in logs:
        log.silent = without
        steps = np.unique(np.concatenate([rows.steps[:0], *(s.steps for s in log.series.values())]))
        usual = np.diff(steps)[-LAST:].max(initial=0)
        if usual and end - steps[-1] >= PERIODS * usual:
            log.notes.append(
                f"blank behind step {steps[-1]:,}, where others go on to {end:,}: the run ended "
                "there, or its values were NaN; its history tells which"
            )


def _chart_log(
    table: FileTable,
    asked: str | None,
    axis: str | None,
    run: str,
    metrics: dict[str, str],
    row_step: bool,
) -> Log:
    own = metrics.get("_step")
    column = axis or own
    if column is None and not row_step:
        raise ConvertError(
            f"{table.path}: no column of steps for run {shown(run)}; choose Step as the chart's x "
            "axis, or name a column by --map COLUMN=step"
        )
    steps = find_steps(table, asked if axis is not None else own, row_step)
    log = Log(run, left_out=dict(table.left_out), notes=list(table.notes))
    for metric, source in metrics.items():
        if source == own:
            log.left_out[metric] = "the step again"
            continue
        log.series[metric] = steps.of(table.columns[source])
        for end in RANGE:
            if source + end in table.columns:
                log.left_out[metric + end] = "the range of what was averaged"
    if axis is None and not row_step:  # the steps are the run's own
        log.silent = silent(log.series, steps.steps[steps.known])
    return log


def _is_averaged(table: FileTable, column: str) -> bool:
    value = table.columns[column]
    return any(
        _differ(value, table.columns[column + e]) for e in RANGE if column + e in table.columns
    )


def _differ(one: Column, other: Column) -> bool:
    same = one.values.shape == other.values.shape
    # NaN on both sides is no difference: every comparison with NaN is false
    return not same or bool((abs(one.values - other.values) > 1e-9 * abs(one.values)).any())
