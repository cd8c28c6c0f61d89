"""Draw the picture of an event, and say what it shows in its own unit."""

from dataclasses import replace

import numpy as np
import pandas as pd

from stabkit.analyze.plots.curves import accuracy_axis
from stabkit.analyze.plots.event_zoom import event_zoom_figure, event_zoom_rows
from stabkit.analyze.plots.note_lines import write_notes
from stabkit.analyze.report.incident import Facts, Incident
from stabkit.analyze.report.pictures import Picture, picture
from stabkit.analyze.text import layers_called, listed, times


def pictured(incident: Incident) -> tuple[Incident, Picture | None]:
    """Draw gradients, loss and accuracy around an event; None if none of them was recorded."""
    rows = event_zoom_rows(incident.run, incident.onset, incident.end, incident.loss)
    if rows.empty:
        return incident, None
    incident = replace(incident, facts=(*incident.facts, *_peak(incident, rows)))
    named = {"gradient": "gradient norms", "accuracy": accuracy_axis(incident.run.accuracy.metric)}
    drawn = rows.drop_duplicates("panel")
    recorded = [named.get(p, s) for p, s in zip(drawn["panel"], drawn["series"], strict=True)]
    alt = f"Curves of {listed(recorded)} from step {rows['step'].min()} to {rows['step'].max()}, "
    alt += "a line at the onset" if rows["end"].isna().any() else "the event shaded"
    facts = "; ".join(": ".join(fact) for fact in incident.facts)
    alt += f". {incident.headline}: {facts}."
    # a table cannot hold bytes that are no text
    title = incident.headline.encode("utf-8", "backslashreplace").decode()
    figure = event_zoom_figure(rows.assign(event=title))
    return incident, picture(write_notes(figure, {incident.run.name: incident.run.notes}), alt)


def _peak(incident: Incident, rows: pd.DataFrame) -> Facts:
    """Return how high the picture of a burst goes, in its own unit: the median of the layer."""
    inside = rows["step"].between(incident.onset, incident.end)
    shown = inside & (rows["panel"] == "gradient") & np.isfinite(rows["value"])
    values = rows["value"].where(shown)
    if incident.kind != "burst" or values.isna().all():
        return ()
    layer, peak = rows.loc[values.idxmax(), "series"], float(values.max())
    height = f"{times(peak)} its median over the run"
    return (("In the picture", f"{layers_called(str(layer))} peaks at {height}"),)
