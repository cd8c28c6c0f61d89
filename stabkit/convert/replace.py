"""`--force`: tell a folder that a conversion made, which may be replaced, from any other."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from stabkit.convert.series import ConvertError, shown
from stabkit.rundir import RunDir
from stabkit.rundir.find import TABLES

_OF_RUN = {*TABLES, "meta.json", "events.jsonl", "figures", "report.html"}
_BESIDE_RUNS = {"figures", "report.html"}


def refuse_to_replace(out: Path) -> None:
    """Raise ConvertError unless `out` holds converted runs, their figures, and nothing else."""
    for foreign in _foreign(out):
        raise ConvertError(
            f"{out}: --force replaces only what convert made, and {shown(str(foreign))} is not; "
            "name another folder"
        )


def _foreign(out: Path) -> Iterator[Path]:
    """Yield what convert did not make."""
    if out.is_symlink() or not out.is_dir():
        yield out
    elif _is_converted(out):
        yield from (path for path in sorted(out.iterdir()) if path.name not in _OF_RUN)
    else:
        for path in sorted(out.iterdir()):
            if path.name in _BESIDE_RUNS:
                continue
            if path.is_symlink() or not path.is_dir() or not _is_converted(path):
                yield path
            else:
                yield from (inner for inner in path.iterdir() if inner.name not in _OF_RUN)


def _is_converted(folder: Path) -> bool:
    try:
        return "converted" in RunDir(folder).read_meta()
    except (OSError, ValueError, RecursionError):
        return False


def command(
    source: Path,
    out: Path,
    options: Sequence[str],
    more: Sequence[str] = (),
    force: bool = False,
) -> str:
    """Return the whole `stabkit convert` command with `more` options, ready to be copied."""
    parts = ["stabkit", "convert", str(source), "-o", str(out), *options]
    parts += [option for option in more if option not in options]
    parts += ["--force"] if force and "--force" not in parts else []
    return shlex.join(parts)
