"""The remark on rows that are missing, the same in the status of a run and in `stabkit status`."""

from collections.abc import Sequence

_BEGINS = "rows are missing: "


def missing_rows(gaps: Sequence[str]) -> str | None:
    """Return the remark that names the gaps; None if there are none."""
    return f"{_BEGINS}{'; '.join(gaps)}" if gaps else None


def without_missing_rows(reason: str | None) -> str | None:
    """Return the reason of a status without that remark, which stands at its end."""
    return (reason or "").partition(_BEGINS)[0].removesuffix("; ") or None
