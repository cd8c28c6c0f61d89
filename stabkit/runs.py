"""The runs that `stabkit.load` returns: their tables, what was found in them, and figures."""

import operator
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import pandas as pd

from stabkit.analyze.diagnoses import Diagnoses, check_metric
from stabkit.analyze.diagnosis import Diagnosis
from stabkit.analyze.found import found_events
from stabkit.analyze.kept_tables import Tables
from stabkit.config import RunConfig, load_config
from stabkit.printing import counted, first_of
from stabkit.rundir import LeftOutWarning, RunDir
from stabkit.store import reader
from stabkit.store.schema import METRIC

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LISTED = 6  # names; more are counted


@dataclass(frozen=True, repr=False)
class Run(reader.StoredRun):
    """One run folder, written by `stabkit train`, by a Monitor in another loop, or by `convert`.

    The tables are `signals`, `scalars` and `evals`. What was found in them is `dips`, `drifts`,
    `spikes`, `bursts`, `collapses`, all together `events`, and the `verdict`. It is found once,
    when it is first asked for: for a run that still trains, load the folder again.
    """

    _tables: Tables = field(default_factory=Tables, compare=False)

    @cached_property
    def _stored(self) -> reader.StoredRun:
        """The run as a diagnosis reads it: of a metric that it lacks there are no rows."""
        return reader.StoredRun(self.path, self.called, self._kept, self._until)

    @cached_property
    def _own(self) -> Diagnosis:
        return Diagnosis(self._stored, None, self._tables)

    @cached_property
    def _of_metrics(self) -> dict[str, Diagnosis]:
        return {}

    def diagnosis(self, metric: str | None = None) -> Diagnosis:
        """Return everything found in the run.

        `metric`: the evaluation that is searched for dips and drifts; by default a held-out
        accuracy, kNN before others.
        """
        if metric is None or metric == self._own.accuracy.metric:
            return self._own
        if metric not in self._of_metrics:
            self._of_metrics[metric] = Diagnosis(self._stored, metric, self._tables)
        return self._of_metrics[metric]

    def evals(self, metric: str | None = None) -> pd.DataFrame:
        """Return the `evals` table in step order; `correct` is packed, with one bit per sample.

        A run without any has the accuracies among its scalars. Raises KeyError, with the names that
        were recorded, if the run has evaluations but none of `metric`.
        """
        frame = super().evals(metric)
        if frame.empty and len(super().evals()):
            check_metric([self._own], metric)
        return frame

    @property
    def verdict(self) -> str:
        """One word: `stable`, `unstable`, …; `stabkit.analyze.verdict.VERDICTS` lists them."""
        return self.diagnosis().verdict

    def dips(self, metric: str | None = None) -> pd.DataFrame:
        """Return one row per dip, as `find_dips` does, and how long it lasted.

        Raises KeyError if the run has no evaluations of `metric`.
        """
        check_metric([self.diagnosis()], metric)
        return self.diagnosis(metric).accuracy.dips.copy()

    def possible_dips(self, metric: str | None = None) -> pd.DataFrame:
        """Return one row per dip that is not clear enough to count; healthy runs have some too."""
        check_metric([self.diagnosis()], metric)
        return self.diagnosis(metric).accuracy.possible_dips.copy()

    def drifts(self, metric: str | None = None) -> pd.DataFrame:
        """Return one row per drift, as `find_drift` does."""
        check_metric([self.diagnosis()], metric)
        return self.diagnosis(metric).accuracy.drifts.copy()

    def spikes(self) -> pd.DataFrame:
        """Return one row per spike of a layer's gradient norm, as `find_spikes` does.

        `stands_out` is true of those in bursts that the noise of the run does not explain: these
        count for the verdict.
        """
        return self.diagnosis().gradients.spikes.copy()

    def bursts(self) -> pd.DataFrame:
        """Return one row per burst: the spikes of several layers that belong together."""
        return self.diagnosis().gradients.bursts.copy()

    def swells(self) -> pd.DataFrame:
        """Return one row per swell: a stretch of gradient norms above their level."""
        return self.diagnosis().gradients.swells.copy()

    def collapses(self) -> pd.DataFrame:
        """Return one row per sign of collapse: the signal, and from which step to which."""
        return self.diagnosis().collapses.copy()

    def events(self, kind: str | None = None) -> pd.DataFrame:
        """Return what was found, in step order: kind, onset, end, layer, size, p.

        `kind` is `dip`, `drift`, `outlier`, `burst`, `swell`, `growth`, `spike`, `loss_spike`,
        `departure`, `stuck`, `unrest`, `collapse`, `nonfinite`, `overflow` or `lr_restart` (a dip,
        drift or loss spike that a restart of the learning rate explains); by default all but
        spikes, which bursts hold. `layer` is where it began: a layer or a series. `size` is the
        depth of a dip, drift or outlier, the ratio of a burst, swell, growth, spike, loss spike or
        departure (at a restart: as of that kind), the scatter of unrest (of a loss: of its
        logarithm), the level of a collapse or a stuck loss, and the number of log entries
        otherwise. `p` is NaN where no test was made. Raises ValueError for an unknown kind. What
        the process did (start, resume, failed) is in `log`.
        """
        return found_events(self.diagnosis(), kind)

    def summary(self) -> str:
        """Return what `stabkit analyze` prints of this run."""
        return Runs(self.path, (self,)).summary()

    def plot(self, name: str, ax: "Axes | None" = None) -> "Figure":
        """Draw a figure of `stabkit analyze --plot NAME` for this run, as `Runs.plot` does."""
        return Runs(self.path, (self,)).plot(name, ax)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"


class Runs(reader.StoredRuns, Sequence[Run]):
    """The runs below a folder, as a sequence: `runs[0]`, `runs[:3]`, `runs["name"]`, `where`.

    Frames are those of `Run`, with a column `run` in front.
    """

    items: tuple[Run, ...]

    @overload
    def __getitem__(self, key: int | str) -> Run: ...
    @overload
    def __getitem__(self, key: slice) -> "Runs": ...
    def __getitem__(self, key: int | str | slice) -> "Run | Runs":
        if isinstance(key, slice):
            return Runs(self.path, self.items[key])
        if not isinstance(key, str):
            return self.items[operator.index(key)]
        for run in self:
            if run.name == key:
                return run
        raise KeyError(f"no run {key!r} in {self.path}; there are: {_listed(self.names)}")

    def __iter__(self) -> Iterator[Run]:
        return iter(self.items)

    @property
    def names(self) -> list[str]:
        return [run.name for run in self]

    def where(self, settings: Mapping[str, Any] | None = None, /, **named: Any) -> "Runs":
        """Return the runs with these settings: `where(lr=0.04)`, `where({"optim.lr": 0.04})`.

        A setting may be called by the last part of its name where only one has it. Raises KeyError
        for a setting that no run has, or a name that stands for several.
        """
        wanted = {self._setting(key): value for key, value in {**(settings or {}), **named}.items()}
        kept = [run for run in self if all(run.settings.get(k) == v for k, v in wanted.items())]
        return Runs(self.path, tuple(kept))

    def _setting(self, name: str) -> str:
        keys = dict.fromkeys(key for run in self for key in run.settings)
        if name in keys:
            return name
        found = [key for key in keys if key.rpartition(".")[2] == name]
        found = [key for key in found if key in self.factors()] or found
        if len(found) == 1:
            return found[0]
        if found:
            raise KeyError(f"{name!r} is the end of several settings: {_listed(found)}; name one")
        raise KeyError(
            f"no run has a setting {name!r}; those that differ: {_listed(self.factors())}"
        )

    def diagnoses(self, metric: str | None = None) -> Diagnoses:
        """Return the diagnosis of every run."""
        return Diagnoses(self.path, tuple(run.diagnosis(metric) for run in self))

    def table(self) -> pd.DataFrame:
        """Return one row per run: state, step, settings that differ, last kNN, and the verdict.

        Beside the verdict are the number of dips, the depth of the deepest, and the number of
        bursts.
        """
        columns = ["run", "state", "step", "knn_last", "verdict"]
        factors = self.factors()
        return pd.DataFrame([_row(run, factors) for run in self], columns=None if self else columns)

    def signals(self, signals: str | Sequence[str] | None = None) -> pd.DataFrame:
        return _joined(self, lambda run: run.signals(signals))

    def scalars(self) -> pd.DataFrame:
        return _joined(self, Run.scalars)

    def evals(self, metric: str | None = None) -> pd.DataFrame:
        """Return the evaluations of each run; one that lacks `metric` has none.

        Raises KeyError if the runs have evaluations but none of `metric`.
        """
        frame = _joined(self, lambda run: reader.StoredRun.evals(run, metric))
        if frame.empty and any(len(run.evals()) for run in self):
            check_metric(self.diagnoses(), metric)
        return frame

    def log(self) -> pd.DataFrame:
        """Return the log of each run (`Run.log`)."""
        return _joined(self, Run.log)

    def dips(self, metric: str | None = None) -> pd.DataFrame:
        """Return the dips of each run (`Run.dips`); one that lacks `metric` has none."""
        check_metric(self.diagnoses(), metric)
        return _joined(self, lambda run: run.diagnosis(metric).accuracy.dips)

    def possible_dips(self, metric: str | None = None) -> pd.DataFrame:
        check_metric(self.diagnoses(), metric)
        return _joined(self, lambda run: run.diagnosis(metric).accuracy.possible_dips)

    def drifts(self, metric: str | None = None) -> pd.DataFrame:
        check_metric(self.diagnoses(), metric)
        return _joined(self, lambda run: run.diagnosis(metric).accuracy.drifts)

    def spikes(self) -> pd.DataFrame:
        return _joined(self, Run.spikes)

    def bursts(self) -> pd.DataFrame:
        return _joined(self, Run.bursts)

    def swells(self) -> pd.DataFrame:
        return _joined(self, Run.swells)

    def collapses(self) -> pd.DataFrame:
        return _joined(self, Run.collapses)

    def events(self, kind: str | None = None) -> pd.DataFrame:
        """Return what was found in each run (`Run.events`)."""
        return _joined(self, lambda run: run.events(kind))

    def summary(self) -> str:
        """Return what `stabkit analyze` prints: the verdicts, and what was found, in words."""
        from stabkit.analyze.summary import summary

        return summary(self.diagnoses())

    def plot(self, name: str, ax: "Axes | None" = None) -> "Figure":
        """Draw the figure of `stabkit analyze --plot NAME` and return it.

        With `ax` it is drawn there, where it fits into one panel. Raises ValueError for a name that
        is no plot, runs without anything to draw, or an `ax` for a figure of several panels.
        """
        from stabkit.analyze.plots import figure_of

        return figure_of(name, self.diagnoses(), ax)

    def __repr__(self) -> str:
        return f"<{counted(len(self), 'run')} in {str(self.path)!r}: {_listed(self.names)}>"

    def _repr_html_(self) -> str:
        return str(self.table().to_html(index=False, float_format="{:.4g}".format))


def _row(run: Run, factors: Sequence[str]) -> dict[str, Any]:
    status, found = run.status(), run.diagnosis()
    knn, dips = found.evals(METRIC)["value"], found.accuracy.dips
    return {
        "run": run.name,
        "state": run.dir.state(),
        "step": status.step if status else None,
        **{key: run.settings.get(key) for key in factors},
        "knn_last": knn.iloc[-1] if len(knn) else None,
        "verdict": found.verdict,
        "dips": len(dips),
        "deepest": dips["depth"].max() if len(dips) else 0.0,
        "bursts": len(found.gradients.bursts),
    }


def _joined(runs: Runs, read: Callable[[Run], pd.DataFrame]) -> pd.DataFrame:
    """Return what `read` gives for each run as one frame, with the run's name in front."""
    frames = [frame.assign(run=run.name) for run in runs if len(frame := read(run))]
    if not frames:
        columns = read(runs[0]).columns if runs else []
        return pd.DataFrame(columns=["run", *columns])
    whole = pd.concat(frames, ignore_index=True)
    return whole[["run", *(c for c in whole.columns if c != "run")]]


def load(folder: str | Path) -> Runs:
    """Load every run at or below `folder`. Raises FileNotFoundError if there is no such folder.

    Two kinds of run are left out with a LeftOutWarning: a run with a damaged configuration, and a
    copy, which has the settings and seed of another run. If there is no run but there are logs of
    other tools, a LeftOutWarning names them.
    """
    found, tables = reader.load(folder), Tables()  # shared, so that few stay in memory
    if not len(found):
        from stabkit.convert.sources import other_logs  # seldom needed

        if others := other_logs(found.path):
            text = f"{found.path}: no run folder in it or below it, but logs of other tools: "
            warnings.warn(text + others, LeftOutWarning, stacklevel=2)
    runs = (Run(run.path, run.called, _tables=tables) for run in found)
    return Runs(found.path, tuple(runs))


def open_run(folder: str | Path) -> Run:
    """Open one run folder. Raises FileNotFoundError if it is not one."""
    return Run(reader.open_run(folder).path)


def train_run(
    config: RunConfig | str | Path, folder: str | Path, *, allow_inexact: bool = False
) -> Run:
    """Train a run in `folder`, or go on with it, and return it; what `stabkit train` does.

    `config` is a preset's name, a YAML file or what `load_config` returned. Raises ConfigError for
    wrong settings, ForeignFolderError for a folder that holds anything else, RunBusyError when
    another process trains there, and InexactResumeError when the run cannot go on bit by bit,
    unless `allow_inexact`. An interrupted training returns too: look at `status()`.
    """
    from stabkit.train.loop import train  # torch takes seconds to import

    if not isinstance(config, RunConfig):
        config = load_config(str(config))
    train(config, RunDir(Path(folder)), allow_inexact=allow_inexact)
    return open_run(folder)


def _listed(names: Sequence[str]) -> str:
    return first_of(names, LISTED) or "none"
