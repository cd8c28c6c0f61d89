"""What the words of a summary mean."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `stabkit analyze --help` needs the words alone
    import pandas as pd

LEVEL = """\
Final accuracy: the median of the last fifth of the evaluations. Best: the highest median of as many
in a row.
"""
DIP = """\
A dip is a fall of accuracy below the level and trend around it. It exceeds the noise of the run
and, if the samples are known, is significant over them (p <= 0.01, corrected for every window).
Time in dips is counted in steps.
"""
COLLAPSE = """\
A run has collapsed if its features or embeddings spread at most a quarter as far as untrained, and
accuracy ends no better than untrained; if its loss stayed at chance for its second half, and
accuracy ends 3 points below untrained; if its loss stayed at zero; or if its accuracy lost nine
tenths of what it had gained over a known chance, and ends there.
"""
BURST = """\
A gradient burst begins when a gradient norm leaves what its own past leads to expect (robust z of 6
or more in log space; 5 if three quarters of the layers rise together).
"""
SWELL = """\
A gradient swell is a stretch of 6 to 32 steps above the level before and after. No single step need
stand out.
"""
GROWTH = """\
Gradient norms grew if their level rises to 20 times its lowest one, at any pace.
"""
LOSS = """\
A loss spike begins as a burst does. A loss has left for good if it ends at 1.4 times its best level
or more. Held-out losses, parts of a total and losses of players or policies are searched for spikes
alone.
"""
STUCK = """\
A loss is stuck if the median of its last half lies less than 2 % below that of its first tenth: it
never fell. That is no sign of instability, but nothing was learned.
"""
UNREST = """\
Unrest is a stretch in which an accuracy scatters 5 times as far as before (4 points or more), or
the logarithm of a loss 8 times (.35 or more).
"""
DEFINITIONS = f"""\
what the words mean:

{LEVEL}
{DIP}
{COLLAPSE}
{BURST}
{SWELL}
{GROWTH}
{LOSS}
{STUCK}
{UNREST}
docs/error-rates.md has the rates of false alarms.
"""


def footnote(table: "pd.DataFrame") -> str:
    """Return the definitions of the words that the table of `run_table` uses, in one paragraph."""
    notes = []
    if (table["metric"] != "").any():
        notes += [LEVEL, DIP]
    if (table["metric"] != "").any() or (table["collapse"] != "").any():
        notes.append(COLLAPSE)
    notes.append(BURST)
    if table["swells"].any():
        notes.append(SWELL)
    if table["growths"].any():
        notes.append(GROWTH)
    if (table["metric"] == "").any() or table[["loss_spikes", "departures"]].any(axis=None):
        notes.append(LOSS)
    if table["stuck"].any():
        notes.append(STUCK)
    if table["unrest"].any():
        notes.append(UNREST)
    return " ".join(" ".join(notes).split())
