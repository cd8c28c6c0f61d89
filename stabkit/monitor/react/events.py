"""An event that is found while a run trains."""

from dataclasses import dataclass, field
from typing import Any

from stabkit.detect.online_dips import State


@dataclass(frozen=True)
class OnlineEvent:
    """An event found during the run. `step`: its onset; `layer`: the one where it began.

    If several layers began at the same step, it is the shallowest.

    `state`: a dip comes as `suspected`, and later once more, as `confirmed` or `withdrawn`. A spike
    comes as `suspected`, and once more as `confirmed` if it stands out from the noise of the run so
    far. Every other event is certain when it is found, and comes as `confirmed` alone: no later
    value changes what its detector says of the values so far.

    `facts` are plain values:
    - spike: signal (`grad_norm`, `loss`), layers (all that began it), ratio (to what was expected)
    - stale_moments: signal, layers, surprise (`gradient_surprise`)
    - nonfinite: signal (what was not finite first: `param_norm`, `loss`, `grad_norm`, …), layers
      (where, the likeliest first), loss (whether it is not finite)
    - collapse: signal, start (its first value), level
    - dip: metric, found_at (step of the evaluation that gave it this state), trough, depth
    """

    kind: str
    step: int
    layer: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    state: State = "confirmed"
