"""What a word of a request names: a path as it stands, or a study or run by its name.

One rule for every verb: a word is a path, or else a name below `runs/` (for runs) or `sweeps/` (for
sweep files). A word that fits both is refused. A sweep file where runs are expected stands for its
runs, and the id at the end of a run's name stands for the run.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from stabkit.cli.request import RequestError
from stabkit.config import ConfigError, read_mapping, suggest
from stabkit.printing import first_of
from stabkit.rundir import find_runs

RUNS, SWEEPS = Path("runs"), Path("sweeps")
YAML = (".yaml", ".yml")
NAMED = 5  # runs in an error message; more are counted


def runs_of(word: str) -> Path:
    """Return the folder of runs, or the log, that a word names. Raises RequestError."""
    if word.endswith(YAML) and Path(word).is_file() and is_sweep_file(Path(word)):
        return _of_sweep_file(word)
    found = _one(word, [Path(word), RUNS / word]) or _by_id(word)
    if found is not None:
        return found
    raise RequestError(_no_runs(word))


def run_of(word: str) -> Path:
    """Return the folder of the run that a word names; its id is enough. Raises RequestError."""
    found = _one(word, [Path(word), RUNS / word]) or _by_id(word)
    if found is None:
        raise RequestError(_no_runs(word))
    runs = find_runs(found) if found.is_dir() else []
    if runs and found not in runs:  # even one run: a verb that writes into it needs its name
        raise RequestError(
            f"{word}: not a run folder, it has no config.yaml; name a run in it: "
            f"{first_of(runs, NAMED)}"
        )
    return found


def sweep_file(word: str) -> Path:
    """Return the sweep file that a word names. Raises RequestError."""
    if word.endswith(YAML):
        return Path(word)  # a missing file is reported where it is read
    found = _one(word, [Path(word), SWEEPS / f"{word}.yaml"], is_file=True)
    if found is not None:
        return found
    known = sorted(path.stem for path in SWEEPS.glob("*.yaml"))
    nowhere = "; name a YAML file, or go to the clone of stabkit, which has the folder sweeps"
    hint = suggest(word, known) if known else nowhere
    raise RequestError(f"{word}: no such sweep file, and no {SWEEPS / word}.yaml{hint}")


def is_sweep(word: str) -> bool:
    """Return whether there is a sweep file of that name."""
    return (SWEEPS / f"{word}.yaml").is_file()


def _one(word: str, paths: Sequence[Path], is_file: bool = False) -> Path | None:
    """Return the path that exists; None if there is none. Raises RequestError for two."""
    if word.startswith(("./", "../", "/")):  # can only be a path
        paths = paths[:1]
    there = [path for path in paths if (path.is_file() if is_file else os.path.lexists(path))]
    if len(there) > 1 and not os.path.samefile(*there):
        name = "./" + word.rstrip("/")
        raise RequestError(f"{word}: there is {name} and {there[1]}; write which you mean")
    return there[0] if there else None


def is_sweep_file(path: Path) -> bool:
    """Return whether a YAML file is a sweep file, and not the settings of a run or a log."""
    try:
        return "name" in read_mapping(path)
    except ConfigError:
        return False


def _of_sweep_file(word: str) -> Path:
    from stabkit.sweep.grid import load_sweep

    folder = RUNS / load_sweep(Path(word)).name
    if not folder.is_dir():
        raise RequestError(
            f"{word}: its runs would be in {folder}; `stabkit sweep {word}` makes them"
        )
    return folder


def _by_id(word: str) -> Path | None:
    """Return the run below `runs/` whose name ends in this id."""
    if not re.fullmatch("[0-9a-f]{8}", word) or not RUNS.is_dir():
        return None
    found = [path for path in find_runs(RUNS) if path.name.endswith(f"-{word}")]
    if len(found) > 1:
        raise RequestError(
            f"{word}: is the id of {len(found)} runs, name one: {first_of(found, NAMED)}"
        )
    return found[0] if found else None


def _no_runs(word: str) -> str:
    if word.rstrip("/") == str(RUNS):
        return f"{word}: no such folder; `stabkit train tiny` makes a first run in it"
    what = "file or folder" if Path(word).suffix else "folder"
    if "/" in word or word.endswith(YAML):
        return f"{word}: no such {what}"
    begin = f"{word}: no such {what}, and no {RUNS / word}"
    if is_sweep(word):
        return f"{begin}; `stabkit sweep {word}` makes its runs"
    below = [path.relative_to(RUNS).parts for path in (find_runs(RUNS) if RUNS.is_dir() else ())]
    known = sorted({parts[0] for parts in below if parts})  # not the folders of figures
    return begin + (suggest(word, known) if known else "")
