"""Logs of other tools where a folder of runs is expected: converted on the way."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from stabkit.cli.request import RequestError
from stabkit.rundir import find_runs

if TYPE_CHECKING:
    from stabkit.convert.series import Series
    from stabkit.convert.write import Converted


def is_log(path: Path) -> bool:
    """Return whether `path` is a file, or a folder with logs of other tools and without runs."""
    if path.is_file():
        return True
    if not path.is_dir() or find_runs(path):
        return False
    from stabkit.convert.sources import has_logs

    return has_logs(path)


def beside(log: Path, what: str) -> Path:
    """Return where to write what is made of a log: `training.log` -> `training-report.html`."""
    return log / what if log.is_dir() else log.with_name(f"{log.stem}-{what}")


@contextmanager
def logs_as_runs(paths: Sequence[Path]) -> Iterator[dict[Path, Path]]:
    """Yield the folder of runs for each path; a log is converted to one that is removed at the end.

    What the conversion did is printed. Raises RequestError if a log cannot be converted as it is.
    """
    with ExitStack() as stack:
        folders = {path: path for path in paths}
        for log in [path for path in folders if is_log(path)]:
            folder = stack.enter_context(TemporaryDirectory(prefix="stabkit-"))
            folders[log] = _converted(log, Path(folder))
        yield folders


def _converted(log: Path, folder: Path) -> Path:
    from stabkit.convert.convert import convert
    from stabkit.convert.replace import command
    from stabkit.convert.series import ConvertError
    from stabkit.convert.words import of_log

    name = log.resolve().stem or "log"
    out = folder / name
    to_copy = Path("runs") / name
    try:
        runs = convert(log, out)
    except ConvertError as error:
        tried = f". Try: {command(log, to_copy, error.options)}" if error.options else ""
        raise RequestError(f"{error}{tried}") from None
    print("\n".join(of_log(log, runs)))
    options = list(dict.fromkeys(option for run in runs for option in run.plan.options))
    doubt = "If a guess is wrong" if options else "To keep the run, or to name series"
    if not options and (first := _unnamed(runs)):
        options = [f"--map={first}=loss"]
        doubt = f"No series is a loss by its name. If {first} is one"
    print(f"{doubt}: {command(log, to_copy, options)}\n")
    return out


def _unnamed(runs: Sequence["Converted"]) -> str | None:
    """Return a series that may be a loss if none is by its name: one that falls, else the first.

    Beside an accuracy or gradient norms, which are judged, the first is not worth a word.
    """
    from stabkit.analyze.series import gradient_norms, may_be_loss
    from stabkit.store.names import losses

    scalars = {name: one for run in runs for name, one in run.plan.scalars.items()}
    if losses(scalars):
        return None
    named = [name for name in scalars if name.isprintable()]
    falling = [name for name in named if may_be_loss(name) and _falls(scalars[name])]
    judged = gradient_norms(scalars) or any(run.plan.evals or run.plan.layers.names for run in runs)
    return next(iter(falling if judged else [*falling, *named]), None)


def _falls(series: "Series") -> bool:
    """Return whether the median of the last quarter is below every value of the first quarter."""
    values = series.values[series.values == series.values]  # without NaN
    quarter = len(values) // 4
    return quarter > 2 and sorted(values[-quarter:])[quarter // 2] < min(values[:quarter])
