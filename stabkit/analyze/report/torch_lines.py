"""Write a remedy as lines of torch for anybody's loop, with the values that a run recorded."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from stabkit.analyze.diagnosis import Diagnosis
from stabkit.analyze.learning_rate import learning_rate, warmup_of
from stabkit.analyze.order import patch_projection
from stabkit.analyze.report.param_groups import Group, rates_of
from stabkit.analyze.report.remedy import Remedy

AT = 0.9  # percentile of the norms at which to clip (Deep Learning Tuning Playbook)


def torch_lines(remedy: Remedy, values: Mapping[str, str]) -> str:
    """Return the lines. `values` are those of `values_of`."""
    return remedy.torch.format_map(values)


def values_of(run: Diagnosis, onset: int | None, groups: Sequence[Group] = ()) -> dict[str, str]:
    """Return the text of every name in braces in the lines of the remedies.

    `onset`: the step at which the trouble began. `groups`: the parameter groups of the layer in
    which it began; the rate and the β2 are those of the first.
    """
    scalars = run.tables.scalars()
    number = groups[0].number if groups else None
    rates = learning_rate(scalars) if number is None else rates_of(scalars, number)
    lr, lr_note = "lr / 2", "half of what it is"
    if len(rates):
        lr, lr_note = f"{rates.max() / 2:.4g}", f"half of the largest on record, {rates.max():.4g}"
    of_group = f", of param group {number}" if number is not None else ""
    return {
        "lr": lr,
        "lr_note": lr_note + of_group,
        **_beta2(scalars, number, of_group),
        "clip_note": _clip(run, scalars),
        "onset": f"{onset:,}" if onset is not None else "of the event",
        **_warmup(rates),
        **_patch(run),
    }


def _warmup(rates: "pd.Series[float]") -> dict[str, str]:
    steps = warmup_of(rates)
    if steps:
        return {"warmup": str(2 * steps), "warmup_note": f"twice the {steps:,} steps on record"}
    if steps == 0:
        tenth = max(1, int(rates.index[-1] - rates.index[0] + 1) // 10)
        return {"warmup": str(tenth), "warmup_note": "a tenth of the steps on record; it had none"}
    return {"warmup": "2 * warmup_steps", "warmup_note": "or a tenth of all steps if it had none"}


def _beta2(scalars: pd.DataFrame, number: int | None, of_group: str) -> dict[str, str]:
    known = scalars.loc[scalars["name"] == f"beta2.{number}", "value"]
    if known.empty:  # the first group with a β2, or one that has the same
        known = scalars.loc[scalars["name"] == "beta2", "value"]
    if known.empty:
        return {"beta2": "0.95", "beta2_note": ""}
    now = float(known.max())
    lower = 0.95 if now > 0.95 else 1 - 2 * (1 - now)  # half the memory
    return {"beta2": f"{lower:.4g}", "beta2_note": f"; β2 was {now:g}{of_group}"}


def _clip(run: Diagnosis, scalars: pd.DataFrame) -> str:
    whole = "grad_norm_total" if len(run.gradients.layers) else (run.gradients.norms or [""])[0]
    norms = scalars.loc[scalars["name"] == whole, "value"]
    norms = norms[np.isfinite(norms)]
    if norms.empty or len(run.gradients.norms) > 1:  # several are norms of parts
        return ""
    return f"\n# {AT:.0%} of the norms on record are below {norms.quantile(AT):.3g}"


def _patch(run: Diagnosis) -> dict[str, str]:
    layer = patch_projection(run)
    if layer is None:
        return {"patch": "patch_embed", "usual": "1.0", "usual_note": ""}
    rows = run.tables.signals(["grad_norm"])
    norms = rows.loc[rows["layer"] == layer, "grad_norm"]
    middle = norms[np.isfinite(norms)].median()
    return {"patch": layer, "usual": f"{middle:.3g}", "usual_note": ": its median on record"}
