"""Refuses to look for events that nothing recorded could show."""

from collections.abc import Collection

from stabkit.monitor.react.watches import SPREADS


def check_needs(kind: str, measured: Collection[str], logged: Collection[str]) -> None:
    """Raise ValueError if no event of this kind could ever be found.

    `measured`: the signals of the Monitor. `logged`: the series that the loop logged so far. No
    other kind is refused: the loss and evaluations may be logged later.
    """
    if kind == "stale_moments" and "adam_rms" not in measured:
        raise ValueError(
            "on: stale_moments needs the signal adam_rms, and this Monitor measures "
            f"{', '.join(measured) or 'none'}: give it signals that include adam_rms"
        )
    if kind == "collapse" and not {*measured, *logged} & set(SPREADS):
        raise ValueError(
            "on: collapse needs a spread or a rank of features, and this Monitor measures "
            f"{', '.join(measured) or 'none'}: give it probe=stabkit.Probe(view) and signals that "
            "include probe_feature_std or probe_rank, or log feature_std or effective_rank before"
        )
