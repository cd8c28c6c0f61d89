"""The signals of every layer: level `basic`, at every step or at the full ones."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stabkit.monitor.blocks import Blocks
from stabkit.monitor.signals.signal import DerivedSignal, LayerSignal, Signal, register_signal

LARGEST = torch.finfo(torch.float64).max


@register_signal
class GradNorm(LayerSignal):
    name = "grad_norm"
    level = "basic"
    unit = "loss / parameter"
    formula = "||g||_2 of the layer's gradients, accumulated, reduced, unscaled"
    source = "MoCo v3 (arXiv 2104.02057), figure 4"
    cost = "2 passes over the parameters"
    reveals = "which layer's gradient bursts, and first"
    reads = "gradients"

    def of_blocks(self, blocks: Blocks) -> Tensor:
        return blocks.squares()

    def of_layer(self, total_L: Tensor, count_L: Tensor) -> Tensor:
        return total_L.sqrt()


@register_signal
class GradMax(LayerSignal):
    name = "grad_max"
    level = "basic"
    unit = "loss / parameter"
    formula = "max |g|"
    cost = "1 pass"
    reveals = "a burst that begins in few elements, which a norm shows late"
    reads = "gradients"
    every_step = False
    combine = "max"

    def of_blocks(self, blocks: Blocks) -> Tensor:
        # on a CPU this takes a fifteenth of the time of torch.aminmax
        return torch.abs(blocks.values, out=blocks.scratch).amax(1)


@register_signal
class NonfiniteCount(LayerSignal):
    name = "nonfinite_count"
    level = "basic"
    unit = "elements"
    formula = "number of NaN and infinite gradient elements"
    cost = "none on a CPU beside grad_norm; else 2 passes"
    reveals = "overflow, and where it begins"
    reads = "gradients"

    def of_blocks(self, blocks: Blocks) -> Tensor:
        values, zero = blocks.values, blocks.scratch
        squares = blocks.squares()  # finite where the values are
        if values.device.type == "cpu" and squares.clamp(max=LARGEST).equal(squares):
            return values.new_zeros(len(values))
        finite = torch.sub(values, values, out=zero).eq_(0)  # x - x is 0 unless x is inf or NaN
        return values.shape[1] - finite.sum(1)


@register_signal
class ZeroCount(LayerSignal):
    name = "zero_count"
    level = "basic"
    unit = "elements"
    formula = "number of gradient elements that are exactly 0"
    cost = "2 passes"
    reveals = "underflow in half precision, dead units"
    reads = "gradients"
    every_step = False

    def of_blocks(self, blocks: Blocks) -> Tensor:
        # counts what is not 0, because the padding is zeros and must not count
        return torch.ne(blocks.values, 0, out=blocks.scratch).sum(1)

    def of_layer(self, total_L: Tensor, count_L: Tensor) -> Tensor:
        return count_L - total_L


@register_signal
class ParamNorm(LayerSignal):
    name = "param_norm"
    level = "basic"
    unit = "parameter"
    formula = "||theta||_2 before the update"
    cost = "2 passes"
    reveals = "drift of the weights, frozen layers included"
    reads = "parameters"
    every_step = False

    def of_blocks(self, blocks: Blocks) -> Tensor:
        return blocks.squares()

    def of_layer(self, total_L: Tensor, count_L: Tensor) -> Tensor:
        return total_L.sqrt()


@register_signal
class UpdateNorm(LayerSignal):
    name = "update_norm"
    level = "basic"
    unit = "parameter"
    formula = "||theta_before - theta_after||_2, weight decay included"
    source = "marin-community/marin issue 1368"
    cost = "3 passes"
    reveals = "an optimizer that steps too far, sometimes before any gradient shows it"
    reads = "updates"
    every_step = False

    def of_blocks(self, blocks: Blocks) -> Tensor:
        return blocks.squares()

    def of_layer(self, total_L: Tensor, count_L: Tensor) -> Tensor:
        return total_L.sqrt()


@register_signal
class UpdateRatio(DerivedSignal):
    name = "update_ratio"
    level = "basic"
    unit = ""
    formula = "update_norm / param_norm; null where the parameters are all 0"
    cost = "none"
    reveals = "how fast a layer moves on its own scale"
    signals_of = ("update_norm", "param_norm")

    def derive(self, values: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        norm = values["param_norm"]
        with np.errstate(invalid="ignore"):
            return np.divide(
                values["update_norm"], norm, out=np.full_like(norm, np.nan), where=norm != 0
            )


@register_signal
class AdamRms(LayerSignal):
    name = "adam_rms"
    level = "basic"
    unit = ""
    formula = "sqrt(mean(g^2 / max(v, eps^2))), v updated, bias-corrected; <= 1/sqrt(1-beta2)"
    source = "Wortsman et al. 2023 (arXiv 2304.13013), section 3"
    cost = "6 passes"
    reveals = "a second moment that lags behind the gradient; led loss spikes by 1 to 8 steps there"
    reads = "adam"
    every_step = False

    def of_blocks(self, blocks: Blocks) -> Tensor:
        return blocks.values.sum(1)

    def of_layer(self, total_L: Tensor, count_L: Tensor) -> Tensor:
        return (total_L / count_L).sqrt()


def _of_run(name: str, unit: str, formula: str, reveals: str) -> None:
    """Register a series of the run, which the Monitor records by itself or gets by `log`."""
    facts = {"name": name, "level": "basic", "unit": unit, "formula": formula, "reveals": reveals}
    register_signal(type(name, (Signal,), facts | {"cost": "none", "__module__": __name__}))


_of_run("loss", "nats, or the loss' own", "as given to `monitor.log`", "spikes, divergence")
_of_run("lr", "", "of the first group; lr.1, … where another group has another", "schedules")
_of_run("grad_scale", "", "GradScaler's factor, with `scaler=`", "skipped steps in half precision")
_of_run("grad_norm_total", "loss / parameter", "||g||_2 of all layers", "bursts of the whole")
_of_run("nonfinite_layers", "layers", "how many have a value that is not finite", "where to look")
