"""Lay out the time line of a run: its curve, and a mark for each event, over the steps."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from stabkit.analyze.diagnosis import Diagnosis
from stabkit.analyze.plots.clock import warmup_end
from stabkit.analyze.plots.curves import accuracy_axis, loss_curve, main_loss
from stabkit.analyze.report.incident import Incident
from stabkit.event_kinds import EventKind

POINTS = 200  # of a curve; a line of text is no wider
WIDTH, HEIGHT = 1000, 100  # of the box that a curve is drawn in
LANES: dict[EventKind, str] = {
    "burst": "gradients", "swell": "gradients", "growth": "gradients", "overflow": "gradients",
    "loss_spike": "loss", "departure": "loss", "stuck": "loss", "nonfinite": "loss",
    "dip": "accuracy", "drift": "accuracy", "outlier": "accuracy", "unrest": "accuracy",
    "collapse": "collapse",
}  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """A small curve: its points for SVG, the parts of it inside events, and what it shows."""

    points: str
    inside: tuple[str, ...]
    about: str


@dataclass(frozen=True)
class Mark:
    """An event on the time line, in percent of its width."""

    kind: str
    left: float
    width: float
    title: str


@dataclass(frozen=True)
class Timeline:
    """A curve and rows of marks over the steps of a run; `warmup` is in percent too."""

    curve: Curve | None
    lanes: tuple[tuple[str, tuple[Mark, ...]], ...]
    first: int
    last: int
    warmup: float | None


def timeline(run: Diagnosis, incidents: Sequence[Incident]) -> Timeline:
    """Return the time line of a run with these of its events."""
    first, last = _span(run, incidents)
    scale = 100 / max(last - first, 1)
    lanes: dict[str, list[Mark]] = {}
    for one in incidents:
        end = one.onset if one.kind == "collapse" else one.end  # a band would hide all else
        left, right = (scale * (min(step, last) - first) for step in (one.onset, end))
        mark = Mark(one.kind, left, max(right - left, 0.4), one.headline)
        lanes.setdefault("loss" if one.loss else LANES[one.kind], []).append(mark)
    ordered = tuple(
        (name, tuple(lanes[name])) for name in dict.fromkeys(LANES.values()) if name in lanes
    )
    rise = warmup_end(run)
    warmup = scale * (rise - first) if rise and first < rise < last else None
    return Timeline(curve(run), ordered, first, last, warmup)


def curve(run: Diagnosis) -> Curve | None:
    """Return the accuracy of a run, or else its loss, as a small curve; None without either."""
    rows, about = run.accuracy.evals[["step", "value"]], accuracy_axis(run.accuracy.metric)
    if rows.empty and (name := main_loss(run)):
        rows, about = loss_curve(run, name).reset_index(), name
    rows = rows[np.isfinite(rows["value"])]
    if len(rows) < 2:
        return None
    spans = [(dip["onset"], dip["end"]) for dip in run.accuracy.dips.to_dict("records")]
    first, last = _span(run, ())
    low, high = float(rows["value"].min()), float(rows["value"].max())
    x = WIDTH * (rows["step"] - first) / max(last - first, 1)
    y = HEIGHT * (1 - (rows["value"] - low) / ((high - low) or 1.0))
    places = pd.DataFrame({"step": rows["step"], "x": x, "y": y})
    places = places.iloc[:: max(1, len(places) // POINTS)]
    inside = [_points(places[places["step"].between(*span)]) for span in spans]
    return Curve(_points(places), tuple(part for part in inside if part), f"{about} over steps")


def _points(places: pd.DataFrame) -> str:
    pairs = places[["x", "y"]].itertuples(index=False)
    return " ".join(f"{x:.0f},{y:.1f}" for x, y in pairs) if len(places) > 1 else ""


def _span(run: Diagnosis, incidents: Sequence[Incident]) -> tuple[int, int]:
    """Return the first and last step that was recorded of a run."""
    steps = [run.accuracy.evals["step"], run.tables.scalars()["step"]]
    known = [(int(s.min()), int(s.max())) for s in steps if len(s)]
    known += [(one.onset, one.end) for one in incidents]
    if not known:
        return 0, 1
    return min(low for low, _ in known), max(high for _, high in known)
