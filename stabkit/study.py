"""A study as its notebook uses it: runs, levels beside a paper's, claims, figures.

A notebook opens in its own folder, and a script runs from anywhere, so the sweep file and the runs
are looked for in the working directory, in the script's folder, and in the folders above both.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from stabkit.analyze.across_runs import bursts_and_dips, onsets
from stabkit.analyze.claims import Claim, together
from stabkit.analyze.order import FIRST, LEAD, herald, herald_words, later, leads
from stabkit.analyze.shared_falls import shared_falls, shared_in_words
from stabkit.analyze.study import (
    dip_more,
    higher,
    levels,
    more_runs,
    published,
    shares_table,
    study_table,
)
from stabkit.detect import event_association, onset_order
from stabkit.detect.association import Association
from stabkit.runs import Runs, load
from stabkit.sweep.grid import load_sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER = "imagenet"  # the scale with the paper's settings, of studies that answer it


@dataclass(frozen=True)
class Study:
    """The runs of a study, and a `table` with one row per run (`stabkit.analyze.study.levels`).

    `paper`: what the paper reports, by arm; empty if it reports nothing. `str(study)` shows the
    table and the paper's values. Settings are dotted keys with values: `{"optim.lr": 0.004}`.
    """

    runs: Runs
    table: pd.DataFrame
    paper: "pd.Series[float]"

    def __str__(self) -> str:
        return study_table(self.table, self.paper)

    @property
    def finished(self) -> Runs:
        """The runs that came to their end: those of `table`."""
        return Runs(self.runs.path, tuple(self.runs[name] for name in self.table["run"]))

    def ends(self, key: str) -> list[dict[str, Any]]:
        """Return each value of a factor as a setting, smallest first, unfinished runs included."""
        return [{key: value} for value in sorted({run.settings[key] for run in self.runs})]

    def higher(
        self,
        text: str,
        better: Mapping[str, Any],
        worse: Mapping[str, Any],
        column: str = "level",
        pairs: str | Sequence[str] = ("seed",),
    ) -> Claim:
        """Judge the claim that runs with the settings `better` end higher than those of `worse`.

        `column`: the column to compare, by default the level. `pairs`: what paired runs share.
        """
        return higher(text, self.table, better, worse, column, _several(pairs))

    def dip_more(
        self,
        text: str,
        more: Mapping[str, Any],
        less: Mapping[str, Any],
        within: str | Sequence[str] = (),
        weight: str | None = None,
    ) -> Claim:
        """Judge the claim that runs with the settings `more` have more dips than those of `less`.

        `within`: settings in which compared runs agree. Dips are counted per step outside of dips;
        `weight` names a factor to multiply steps by, as `train.batch` for dips per image.
        """
        table = self.table
        if weight is not None:
            table = table.assign(exposure=table["exposure"] * table[weight])
        return dip_more(text, table, more, less, _several(within))

    def more_runs(
        self, text: str, events: pd.DataFrame, more: Mapping[str, Any], less: Mapping[str, Any]
    ) -> Claim:
        """Judge the claim that more of the runs with the settings `more` have one of `events`.

        `events`: rows of `finished.dips()`, `finished.bursts()`, or another frame with the names of
        runs in column run. Whole runs are exchanged between the arms.
        """
        return more_runs(text, self.table, events, more, less)

    def shares(self, events: Mapping[str, pd.DataFrame]) -> str:
        """Return in how many finished runs of each arm there are events, with exact intervals.

        `events`: frames as those of `more_runs`, by their names in words.
        """
        return shares_table(self.table, events)

    def leads(
        self, text: str, layer: str = FIRST, settings: Mapping[str, Any] | None = None
    ) -> Claim:
        """Judge the claim that a layer is the first of a burst more often than by chance.

        Ties are shared. `settings`: only runs with these are asked.
        """
        return leads(text, self.runs.where(settings).diagnoses(), layer)

    def later(self, text: str, shallow: str | None = None, deep: str | None = None) -> Claim:
        """Judge the claim that the `deep` layer spikes after the `shallow` one.

        By default these are the shallowest and the deepest layer of each burst.
        """
        return later(text, self.runs.diagnoses(), shallow, deep)

    def herald(self, text: str) -> Claim:
        """Judge the claim that bursts come before dips, at most `order.LEAD` steps before."""
        return herald(text, self._association)

    def herald_words(self) -> str:
        """Say how many dips a burst preceded, and what chance would do."""
        return herald_words(self._association)

    @cached_property
    def _association(self) -> Association:
        return event_association(bursts_and_dips(self.runs.diagnoses()), LEAD)

    def onset_order(self) -> pd.DataFrame:
        """Return how often each layer spiked, and came first, in bursts (`stabkit.onset_order`)."""
        return onset_order(onsets(self.runs.diagnoses()))

    def shared_falls(self) -> list[str]:
        """Return a sentence for each fall that the finished runs of a setting share."""
        return shared_in_words(shared_falls(self.finished.diagnoses()))

    def judge(self, *claims: Claim) -> str:
        """Return the verdicts on the claims, corrected for their number."""
        return together(claims)

    def draw(self, name: str) -> "Figure":
        """Draw a figure, write it below the runs' folder, print where, and return it.

        `name` is `levels`, the final level of every run beside the paper's, or a figure of
        `stabkit analyze --plot`. Raises ValueError as `Runs.plot` does.
        """
        from stabkit.analyze.plots import figure_of, save, table_of
        from stabkit.analyze.plots.levels import draw_levels

        if name == "levels":
            figure, table = draw_levels(self.table, self.paper), self.table
        else:
            diagnoses = self.runs.diagnoses()
            figure, table = figure_of(name, diagnoses), table_of(name, diagnoses)
        print(*save(figure, table, self.runs.path / "figures" / name), sep="\n")
        return figure


def open_study(
    name: str, runs: str | Path, factors: str | Sequence[str] = (), metric: str | None = None
) -> Study:
    """Open the study of `sweeps/NAME.yaml` on the runs in the folder `runs`.

    A folder named on the command line comes before `runs`. `factors`: the settings whose values are
    the arms of the study. `metric`: judge by the first evaluation whose name begins so, instead of
    held-out accuracy. Raises SystemExit, with what to do, if there is no sweep file, if no run is
    done or if none has such an evaluation. Raises ConfigError for a wrong sweep file.
    """
    found, factors = _runs(runs), _several(factors)
    if metric is not None:
        metric = _evaluation(found, metric, name)
    table = levels(found.diagnoses(metric), factors)
    if table.empty:
        raise SystemExit(f"{found.path}: no run is done; `stabkit sweep` goes on with them")
    file = _found(Path("sweeps", f"{name}.yaml"))
    if not file.is_file():
        raise SystemExit(
            f"{file}: no such sweep file in the working directory, the script's folder or above; "
            "studies are in the clone of stabkit: run it there"
        )
    paper = load_sweep(file)
    if PAPER in paper.scales:
        paper = load_sweep(file, PAPER)
    if paper.published is None:
        return Study(found, table, pd.Series(dtype=float))
    return Study(found, table, published(paper.runs, factors, paper.published.measure))


def _several(names: str | Sequence[str]) -> Sequence[str]:
    return [names] if isinstance(names, str) else names


def _runs(default: str | Path) -> Runs:
    """Return the runs of the folder named on the command line; in a notebook, of `default`."""
    given = [word for word in _words(sys.argv[1:]) if not word.startswith("-")]
    folder = Path(given[0]) if given else _found(Path(default))
    if not folder.is_dir() or not len(found := load(folder)):
        raise SystemExit(f"{folder}: no runs there; `stabkit sweep` makes them")
    return found


def _words(argv: Sequence[str]) -> Sequence[str]:
    """Return the words without `-f FILE.json`, by which a notebook's kernel is started."""
    if argv[:1] == ["-f"] and argv[1:2] and argv[1].endswith(".json"):
        return argv[2:]
    return argv


def _found(path: Path) -> Path:
    """Return where a relative path leads from here, the script or a folder above; else itself."""
    starts = [Path.cwd(), Path(sys.argv[0]).resolve().parent]
    tried = [folder / path for start in starts for folder in (start, *start.parents)]
    return next((place for place in tried if place.exists()), path)


def _evaluation(runs: Runs, begin: str, name: str) -> str:
    for run in runs:
        for metric in run.evals()["metric"].unique():
            if metric.startswith(begin):
                return str(metric)
    raise SystemExit(f"{runs.path}: no run has {begin}; see the top of sweeps/{name}.yaml")
