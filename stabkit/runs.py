"""The runs that `stabkit.load` returns: their tables, what was found in them, and figures."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import pandas as pd

from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.diagnosis import Diagnosis
from stabkit.analyze.found import found_events
from stabkit.config import RunConfig, load_config
from stabkit.printing import counted
from stabkit.rundir import RunDir
from stabkit.store import reader
from stabkit.store.reader import joined

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Run(reader.Run):
    """One run folder, written by `stabkit train`, by a Monitor in another loop, or by `convert`.

    The tables are `signals`, `scalars` and `evals`. What was found in them is `dips`, `drifts`,
    `spikes`, `bursts`, `collapses`, all together `events`, and the `verdict`. It is found once,
    when it is first asked for: for a run that still trains, load the folder again.
    """

    @cached_property
    def _diagnoses(self) -> dict[str | None, Diagnosis]:
        return {}

    def diagnosis(self, metric: str | None = None) -> Diagnosis:
        """Return everything found in the run.

        `metric`: the evaluation that is searched for dips and drifts; by default a held-out
        accuracy, kNN before others.
        """
        if metric not in self._diagnoses:
            self._diagnoses[metric] = Diagnosis(self, metric)
        return self._diagnoses[metric]

    @property
    def verdict(self) -> str:
        """One word: `stable`, `unstable`, …; `stabkit.analyze.verdict.VERDICTS` lists them."""
        return self.diagnosis().verdict

    def dips(self, metric: str | None = None) -> pd.DataFrame:
        """Return one row per dip, as `find_dips` does, and how long it lasted."""
        return self.diagnosis(metric).dips.copy()

    def possible_dips(self, metric: str | None = None) -> pd.DataFrame:
        """Return one row per dip that is not clear enough to count; healthy runs have some too."""
        return self.diagnosis(metric).possible_dips.copy()

    def drifts(self, metric: str | None = None) -> pd.DataFrame:
        """Return one row per drift, as `find_drift` does."""
        return self.diagnosis(metric).drifts.copy()

    def spikes(self) -> pd.DataFrame:
        """Return one row per spike of a layer's gradient norm, as `find_spikes` does.

        `stands_out` is true of those in bursts that the noise of the run does not explain: these
        count for the verdict.
        """
        return self.diagnosis().spikes.copy()

    def bursts(self) -> pd.DataFrame:
        """Return one row per burst: the spikes of several layers that belong together."""
        return self.diagnosis().bursts.copy()

    def swells(self) -> pd.DataFrame:
        """Return one row per swell: a stretch in which gradient norms stand above their level."""
        return self.diagnosis().swells.copy()

    def collapses(self) -> pd.DataFrame:
        """Return one row per sign of collapse: the signal, and from which step to which."""
        return self.diagnosis().collapses.copy()

    def events(self, kind: str | None = None) -> pd.DataFrame:
        """Return what was found, in step order: kind, onset, end, layer, size, p.

        `kind` is `dip`, `drift`, `outlier`, `burst`, `swell`, `spike`, `loss_spike`, `departure`,
        `stuck`, `collapse`, `nonfinite` or `overflow`; by default all but spikes: bursts hold them.
        `layer` is where it began: a layer or a series. `size` is the depth of a dip, drift or
        outlier, the ratio of a burst, swell, spike or departure, the level of a collapse or a stuck
        loss, and the number of log entries otherwise. `p` is NaN where no test was made. Raises
        ValueError for an unknown kind. What the process did (start, resume, failed) is in `log`.
        """
        return found_events(self.diagnosis(), kind)

    def plot(self, name: str, ax: "Axes | None" = None) -> "Figure":
        """Draw a figure of `stabkit analyze --plot NAME` for this run, as `Runs.plot` does."""
        return Runs(self.path, (self,)).plot(name, ax)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"


class Runs(reader.Runs, Sequence[Run]):
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
        if isinstance(key, int):
            return self.items[key]
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
        if not self:
            return pd.DataFrame(columns=["run", "state", "step", "knn_last", "verdict"])
        found = [
            {
                "verdict": run.verdict,
                "dips": len(dips := run.dips()),
                "deepest": dips["depth"].max() if len(dips) else 0.0,
                "bursts": len(run.bursts()),
            }
            for run in self
        ]
        return pd.concat([super().table(), pd.DataFrame(found)], axis=1)

    def dips(self, metric: str | None = None) -> pd.DataFrame:
        return joined(self, lambda run: run.dips(metric))

    def possible_dips(self, metric: str | None = None) -> pd.DataFrame:
        return joined(self, lambda run: run.possible_dips(metric))

    def drifts(self, metric: str | None = None) -> pd.DataFrame:
        return joined(self, lambda run: run.drifts(metric))

    def spikes(self) -> pd.DataFrame:
        return joined(self, Run.spikes)

    def bursts(self) -> pd.DataFrame:
        return joined(self, Run.bursts)

    def swells(self) -> pd.DataFrame:
        return joined(self, Run.swells)

    def collapses(self) -> pd.DataFrame:
        return joined(self, Run.collapses)

    def events(self, kind: str | None = None) -> pd.DataFrame:
        """Return what was found in each run (`Run.events`)."""
        return joined(self, lambda run: run.events(kind))

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


def load(folder: str | Path) -> Runs:
    """Load every run at or below `folder`. Raises FileNotFoundError if there is no such folder.

    Two kinds of run are left out with a LeftOutWarning: a run with a damaged configuration, and a
    copy, which has the settings and seed of another run.
    """
    found = reader.load(folder)
    return Runs(found.path, tuple(Run(run.path, run.called) for run in found))


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


def _listed(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more
