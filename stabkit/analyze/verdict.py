"""One word for how a run went."""

from stabkit.detect.dips import SHORTEST

VERDICTS = ("diverged", "collapsed", "unstable", "bursts", "unknown", "stable")  # worst first
UNSTABLE = VERDICTS[:3]


def verdict(
    nonfinite: int, num_collapses: int, num_evals: int, num_falls: int, num_bursts: int
) -> str:
    """`num_falls`: dips and drifts; the other numbers are of what their names say."""
    if nonfinite:
        return "diverged"
    if num_collapses:
        return "collapsed"
    if num_falls:
        return "unstable"
    if num_evals < SHORTEST:
        return "unknown"
    return "bursts" if num_bursts else "stable"
