"""Run what is missing of a sweep on this machine, and say how it went."""

from pathlib import Path

from stabkit.config import ConfigError, missing_data
from stabkit.rundir import RunDir, atomic_write
from stabkit.sweep.display import live_status
from stabkit.sweep.grid import Sweep
from stabkit.sweep.pool import Outcome, make_slots, run_pool, visible_cpus, visible_gpus
from stabkit.sweep.reconcile import reconcile
from stabkit.sweep.status import status_row
from stabkit.yamlio import dump_yaml


def print_cells(sweep: Sweep, folder: Path) -> None:
    """What would run, in order, and how each cell stands now."""
    print(f"{sweep.name}: {len(sweep.cells)} cells at scale {sweep.scale or 'default'} in {folder}")
    if sweep.published:
        print(f"  published: {sweep.published.measure} ({sweep.published.source})")
    if sweep.slurm:
        print(f"  each run asks for: {', '.join(f'{k} {v}' for k, v in sweep.slurm if v)}")
    for task in reconcile(sweep.cells, folder):
        value = "" if task.cell.published is None else f"  published {task.cell.published:g}"
        print(f"  {task.standing:<12}{task.rundir.path.name}{value}")


def launch(sweep: Sweep, folder: Path) -> int:
    """Exit code: 0 when every cell is done, 1 when one failed.

    Raises, before anything starts, ConfigError when the data is not where it should be and
    RunBusyError when another launcher is at work on the sweep.
    """
    undone = [t.cell.config for t in reconcile(sweep.cells, folder) if t.standing != "done"]
    problems = dict.fromkeys(problem for c in undone if (problem := missing_data(c)))
    if problems:
        raise ConfigError(sweep.name, list(problems))
    with RunDir(folder).lock():
        return _launch(sweep, folder)


def _launch(sweep: Sweep, folder: Path) -> int:
    tasks = reconcile(sweep.cells, folder)
    todo = [t for t in tasks if t.standing in ("missing", "interrupted", "failed")]
    elsewhere = [t for t in tasks if t.standing == "running"]
    done = len(tasks) - len(todo) - len(elsewhere)
    slots = make_slots([t.cell.config for t in todo], visible_cpus(), visible_gpus())
    side = f", {min(len(slots), len(todo))} at a time" if todo else ""
    print(f"{sweep.name}: {len(tasks)} cells, {done} done, {len(todo)} to run{side}; in {folder}")
    if sweep.slurm and todo:
        print("  the sweep asks for a SLURM cluster; this starts its runs on this machine")
    for task in elsewhere:
        print(f"  left alone, another process is running it: {task.rundir.path}")
    if not todo:
        return 0
    cells = {cell.folder: dict(cell.settings) for cell in sweep.cells}
    atomic_write(folder / "cells.yaml", dump_yaml(cells).encode())
    with live_status(lambda: [status_row(t.rundir, t.rundir.path.name) for t in todo]) as tick:
        outcomes = run_pool(todo, slots, tick)
    return _report(sweep, outcomes)


def _report(sweep: Sweep, outcomes: list[Outcome]) -> int:
    failed = [o for o in outcomes if o.status.state != "done"]
    for outcome in failed:
        print(f"failed: {outcome.task.rundir.path}\n    {outcome.status.reason}")
    print(f"{sweep.name}: {len(outcomes) - len(failed)} runs done, {len(failed)} failed")
    if failed:
        print("the same command runs only what is missing or failed")
    return 1 if failed else 0
