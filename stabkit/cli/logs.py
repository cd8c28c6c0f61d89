"""Logs of other tools where a folder of runs is expected: converted on the way."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from stabkit.cli.request import RequestError
from stabkit.rundir import find_runs

if TYPE_CHECKING:
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
        doubt = (
            f"No series is a loss, a gradient norm or an accuracy by its name. If {first} is a loss"
        )
    print(f"{doubt}: {command(log, to_copy, options)}\n")
    return out


def _unnamed(runs: Sequence["Converted"]) -> str | None:
    """Return the first series of the runs if none of them is judged, going by their names."""
    from stabkit.analyze.series import gradient_norms, losses

    scalars = list(dict.fromkeys(name for run in runs for name in run.plan.scalars))
    if any(run.plan.evals or run.plan.layers.names for run in runs):
        return None
    judged = losses(scalars) or gradient_norms(scalars)
    return None if judged else next((name for name in scalars if name.isprintable()), None)
