"""Says which events cannot be seen in what a Monitor records."""

from collections.abc import Collection

from stabkit.detect.collapse import SPREADS


def check_needs(kind: str, measured: Collection[str]) -> None:
    """Raise ValueError if no event of this kind could ever be found.

    `measured`: the signals of the Monitor.
    """
    if kind == "stale_moments" and "adam_rms" not in measured:
        raise ValueError(
            "on: stale_moments needs the signal adam_rms, and this Monitor measures "
            f"{', '.join(measured) or 'none'}: give it signals that include adam_rms"
        )


def unseen(
    kind: str, measured: Collection[str], logged: Collection[str], full_every: int
) -> str | None:
    """Return what will not be seen of this kind, as things are; None if nothing.

    `logged`: the series that the loop logged so far; it may log others later.
    """
    if kind == "stale_moments" and full_every > 1:
        return (
            f"stale_moments are looked for at every {full_every} steps only, where Adam's moments "
            "are measured; those of the steps between are missed. Monitor(..., full_every=1) looks "
            "at every step"
        )
    if kind == "collapse" and not {*measured, *logged} & set(SPREADS):
        return (
            "a collapse is looked for in the spread or rank of features, and nothing measures one "
            "so far: give the Monitor probe=stabkit.Probe(view) and signals that include "
            "probe_feature_std or probe_rank, or log feature_std or effective_rank in the loop"
        )
    return None
