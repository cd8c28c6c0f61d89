"""The format of a source, and the logs in it: a file is read, a folder is searched."""

from collections.abc import Callable, Sequence
from pathlib import Path

from stabkit.convert.columns import FileTable
from stabkit.convert.lightning import FILE, is_metrics, metrics_log
from stabkit.convert.long_form import runs_in
from stabkit.convert.neptune import exported_logs, is_export, is_part
from stabkit.convert.series import ConvertError, Log, listed
from stabkit.convert.steps import to_log
from stabkit.convert.tables import read_table
from stabkit.convert.tensorboard import (
    is_event_file,
    is_of_scalars,
    read_events,
    subfolders,
)
from stabkit.convert.trackio import is_project, is_sqlite, project_logs
from stabkit.convert.unread import TEXTS, unread_logs
from stabkit.convert.wandb import chart_logs, history_log, is_chart, is_history

STATE = "trainer_state.json"  # of Hugging Face's Trainer
FILES = {"tensorboard": is_event_file, "trackio": is_sqlite, "neptune": is_export}  # no tables
PROGRAMS = {".py": "a Python program", ".ipynb": "a notebook", ".sh": "a shell script"}
TABLES = (STATE, "results.csv", "scalars.json", "metrics.json")  # YOLO, mmengine, detectron2
KINDS: dict[str, Callable[[Path], bool]] = {  # formats that a single file of a folder shows
    "wandb": lambda path: path.suffix == ".wandb",
    "trackio": is_project,
    "neptune": is_part,
}


def read_logs(
    source: Path, format: str | None, step: str | None, row_step: bool
) -> tuple[str, list[Log]]:
    """Return the format, given or recognized, and one log per run.

    `step` is the column of steps, if the user names one; with `row_step` rows are counted. A folder
    without logs of its own is searched: every folder below it that has some is a run. What else
    looks like a log there is noted.
    """
    if source.is_dir():
        found, paths = _search(source, format)
        logs = _read_folder(source, found, paths, step, row_step)
        if others := other_logs(source, paths):
            logs[0].notes.append(f"not read: {others}")
        return found, logs
    if source.suffix in PROGRAMS:
        raise ConvertError(
            f"{source}: is {PROGRAMS[source.suffix]}, no log; name the file that the training loop "
            "writes its numbers to"
        )
    _refuse_format(source, format)
    if is_event_file(source) or format == "tensorboard":
        _refuse_step(step, row_step, "TensorBoard events")
        return "tensorboard", [read_events(source)]
    if is_sqlite(source):
        return "trackio", project_logs(source, step, row_step)
    if is_export(source):
        _refuse_step(step, row_step, "Neptune's series")
        return "neptune", exported_logs([source])
    table = read_table(source, row_step)
    format = format or _format_of(source, list(table.columns))
    if format == "wandb" and is_chart(list(table.columns)):
        return format, chart_logs(table, step, row_step)
    logs = []
    for name, part in runs_in(table, step):
        log = _log_of(format, part, step, row_step, source.stem)
        log.name = name or log.name
        logs.append(log)
    return format, logs


def _refuse_format(source: Path, format: str | None) -> None:
    """Raise ConvertError if the file is of another format than the user says.

    One format of tables may be read as another, and any file as TensorBoard's: its reader refuses.
    """
    found = next((name for name, is_one in FILES.items() if is_one(source)), None)
    if format is None or found == format:
        return
    if found is not None:
        raise ConvertError(f"{source}: is a file of {found}; leave out --format {format}")
    if format in FILES and format != "tensorboard":
        raise ConvertError(f"{source}: is no file of {format}; leave out --format {format}")


def _log_of(format: str, table: FileTable, step: str | None, row_step: bool, name: str) -> Log:
    """Return the one run of a table."""
    if format == "wandb":
        return history_log(table, step, row_step, name)
    if format == "lightning":
        return metrics_log(table, step, row_step)
    return to_log(table, step, row_step, name)


def has_logs(folder: Path) -> bool:
    """Return whether a folder, or one below it, has logs that are known by their names."""
    return any(map(_is_known, folder.rglob("*")))


def _is_known(path: Path) -> bool:
    return (
        is_event_file(path)
        or path.name in (FILE, *TABLES)
        or any(is_one(path) for is_one in KINDS.values())
    )


def other_logs(folder: Path, read: Sequence[Path] = ()) -> str:
    """Return in words which logs of a folder are not among those `read`; empty if there are none.

    Event files are all taken for read if one is, because others have a note of their own.
    """
    events = any(map(is_event_file, [f for p in read for f in (p.iterdir() if p.is_dir() else ())]))
    also = [path for path in folder.rglob("*") if is_event_file(path)] if events else []
    return unread_logs(folder, [*read, *also], _is_known, _looks_like_log)


def _looks_like_log(path: Path, row_step: bool = False) -> bool:
    """Return whether a file is a log of several steps, if need be with some option."""
    try:
        _, logs = read_logs(path, None, None, row_step)
    except ConvertError as error:
        if "--row-step" in error.options and not row_step:
            return _looks_like_log(path, row_step=True)
        return bool(error.options)
    except OSError:  # not readable
        return False
    return any(len(series.steps) > 1 for log in logs for series in log.series.values())


def _read_folder(
    source: Path, found: str, paths: list[Path], step: str | None, row_step: bool
) -> list[Log]:
    if found == "lightning":
        return _read_each(source, paths, lambda path: metrics_log(read_table(path), step, row_step))
    if found == "wandb":
        return _read_each(
            source, paths, lambda path: history_log(read_table(path), step, row_step, path.stem)
        )
    if found == "table":
        return _read_each(
            source, paths, lambda path: to_log(read_table(path), step, row_step, source.name)
        )
    if found == "trackio":
        return [log for path in paths for log in _of_project(path, step, row_step, paths)]
    if found == "neptune":
        _refuse_step(step, row_step, "Neptune's series")
        return exported_logs(paths)
    _refuse_step(step, row_step, "TensorBoard events")
    of_others = {below for path in paths for below in subfolders(path) if is_of_scalars(below)}
    paths = [path for path in paths if path not in of_others]
    logs = _read_each(source, paths, read_events)
    every = {path.parent for path in source.rglob("*") if is_event_file(path)}
    unread = every - {*paths} - of_others
    if unread:
        where = listed(sorted(str(path.relative_to(source)) for path in unread))
        logs[0].notes.append(f"not read, event files in folders below: {where}")
    return logs


def _of_project(path: Path, step: str | None, row_step: bool, paths: list[Path]) -> list[Log]:
    """Return the runs of one of several projects; their names then begin with the project's."""
    logs = project_logs(path, step, row_step)
    for log in logs if len(paths) > 1 else []:
        log.name = f"{path.stem}/{log.name}"
    return logs


def _refuse_step(step: str | None, row_step: bool, what: str) -> None:
    if step is not None or row_step:
        asked = "--row-step" if row_step else f"--map {step}=step"
        raise ConvertError(f"{asked}: {what} carry their own step")


def _format_of(path: Path, names: list[str]) -> str:
    if is_chart(names) or is_history(names):
        return "wandb"
    return "lightning" if is_metrics(path) else "table"


def _search(folder: Path, format: str | None) -> tuple[str, list[Path]]:
    """Return the format and where its logs are: in `folder` itself, else anywhere below it.

    For TensorBoard these are the folders with event files, for others the files. Hugging Face's
    checkpoints count as one log, that with the longest history.
    """
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
    for paths in (here, below):
        for kind, is_one in KINDS.items():
            if format in (None, kind) and (files := [path for path in paths if is_one(path)]):
                return kind, sorted(files)
        for name in TABLES if format in (None, "table") else ():
            if files := sorted(path for path in paths if path.name == name):
                return "table", files if name != STATE else [max(files, key=_size)]
    what = f"files of {format}" if format else f"TensorBoard event files or {FILE}"
    texts = [str(p.relative_to(folder)) for p in sorted(below) if p.suffix in TEXTS]
    found = f", such as {listed(texts, 3)}" if texts else ""
    raise ConvertError(
        f"{folder}: no {what} in it or below it; to convert a CSV, Parquet, JSON or text file, "
        f"name the file itself{found}"
    )


def _size(path: Path) -> int:
    """Return the size of a file: each checkpoint keeps the history so far, the last the longest."""
    return path.stat().st_size


def _read_each(source: Path, paths: list[Path], read: Callable[[Path], Log]) -> list[Log]:
    """Read one log per path; if there are several, name each by its folder below `source`.

    A log that cannot be read, as of a run that crashed at once, is noted. Raises ConvertError if
    none can be read.
    """
    logs, unread = [], []
    for path in paths:
        try:
            log = read(path)
        except ConvertError as error:
            unread.append(error)
            continue
        if len(paths) > 1:
            folder = path if path.is_dir() else path.parent
            log.name = str(folder.relative_to(source))
        logs.append(log)
    if not logs:
        raise unread[0]
    logs[0].notes += [f"not read: {error}" for error in unread]
    return logs
