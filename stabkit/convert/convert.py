"""`stabkit convert`: the log of another tool in, run folders out."""

from collections.abc import Sequence
from pathlib import Path

from stabkit.convert.mapping import ConversionPlan, place, propose_score
from stabkit.convert.replace import refuse_to_replace
from stabkit.convert.series import ConvertError, Log, listed
from stabkit.convert.sources import read_logs
from stabkit.convert.targets import parse_map, refuse_unknown, step_of
from stabkit.convert.write import Converted, folder_names, write_all

ONE_STEP = (
    "holds one step: a summary of last values is no run. Name the log that has the history: of W&B "
    "the file wandb/run-*/run-*.wandb, or what `json.dump(list(run.scan_history()), "
    "open('history.json', 'w'))` writes"
)
MOST_LAYERS = 2**15  # depth is 16 bits wide
RUN_FILES = ("config.yaml", "layers", "scalars", "evals")  # a folder with one of these is a run


def convert(
    source: Path,
    out: Path,
    pairs: Sequence[str] = (),
    chance: float | None = None,
    n: int | None = None,
    format: str | None = None,
    dry_run: bool = False,
    row_step: bool = False,
    force: bool = False,
) -> list[Converted]:
    """Write `source` as a run folder at `out`, or as several below it; return what went where.

    `pairs` are `COLUMN=TARGET`. With `row_step` the number of a row is its step. `chance` and `n`
    hold for all evaluations. `force` replaces an earlier conversion at `out`. Everything is
    written, or nothing. Raises ConvertError if the source or the request is wrong, OSError if the
    disk fails.
    """
    targets = parse_map(pairs)
    step = step_of(targets)
    if row_step and step is not None:
        raise ConvertError(f"--row-step and --map {step}=step: one of them")
    _check(source, out, chance, n, force)
    format, logs = read_logs(source, format, step, row_step)
    names = {name for log in logs for name in [*log.series, *log.left_out]}
    refuse_unknown([t for t in targets if t != step], sorted(names), str(source))
    plans = [place(log, targets, chance, n) for log in logs]
    propose_score(logs, plans, targets)
    _refuse_unusable(source, logs, plans)
    folders = [out / name for name in folder_names([log.name for log in logs])]
    if len(logs) == 1:
        folders = [out]
    converted = [
        Converted(folder, format, plan) for folder, plan in zip(folders, plans, strict=True)
    ]
    if not dry_run:
        write_all(source, out, converted, force)
    return converted


def _check(source: Path, out: Path, chance: float | None, n: int | None, force: bool) -> None:
    if not (source.is_file() or source.is_dir()):
        raise ConvertError(f"{source}: no such file or folder")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not force:
            raise ConvertError(
                f"{out}: is there already and is not written over; name another, or replace an "
                "earlier conversion by --force"
            )
        refuse_to_replace(out)
    if chance is not None and not 0 <= chance < 1:
        raise ConvertError(f"--chance {chance:g}: must be a fraction from 0 to below 1, as 0.1")
    if n is not None and not 1 <= n < 2**31:
        raise ConvertError(f"--n {n}: the number of samples evaluated, at least 1")
    if source.is_dir() and any((source / name).exists() for name in RUN_FILES):
        raise ConvertError(f"{source}: is a run folder already; `stabkit analyze` reads it")


def _refuse_unusable(source: Path, logs: Sequence[Log], plans: Sequence[ConversionPlan]) -> None:
    """Raise ConvertError if the plans hold too many layers, one step only, or no series at all."""
    for plan in plans:
        if len(plan.layers.names) > MOST_LAYERS:
            raise ConvertError(f"{source}: {len(plan.layers.names):,} layers are too many")
    if all(_has_one_step(log) for log in logs):
        raise ConvertError(f"{source}: {ONE_STEP}")
    if not any(plan.went for plan in plans):
        left = sorted(f"{name} ({why})" for plan in plans for name, why in plan.left_out.items())
        why = f"; left out: {listed(left)}" if left else ""
        raise ConvertError(f"{source}: holds no series of numbers{why}")


def _has_one_step(log: Log) -> bool:
    """Return whether all values stand at one step; False for an empty log."""
    steps = {int(step) for series in log.series.values() for step in series.steps}
    return len(steps) == 1
