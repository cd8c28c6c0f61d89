"""Signals of the level `attention`: what a block's attention sees and what the block gives out."""

from collections.abc import Mapping

import torch
from torch import Tensor

from stabkit.monitor.probe.probe import ProbePass
from stabkit.monitor.signals.signal import ProbeSignal, register_signal

_FORWARD = "one forward of the probe, shared by the level"


@register_signal
class AttentionLogit(ProbeSignal):
    name = "attention_logit"
    level = "attention"
    unit = "1 (what the softmax sees)"
    formula = "max over samples, heads, queries, keys of q·k/√d (+ bias); not where masked"
    source = "Wortsman et al. 2023, arXiv 2309.14322, section 3.1.1"
    cost = _FORWARD
    reveals = "growth of attention logits, which precedes divergence at high learning rates"

    def measure(self, seen: ProbePass) -> Mapping[str, Tensor]:
        logits = seen.watched.logits
        return {layer: torch.stack(found).amax() for layer, found in logits.items()}


@register_signal
class AttentionEntropy(ProbeSignal):
    name = "attention_entropy"
    level = "attention"
    unit = "share of ln S, 0 to 1"
    formula = "min over heads of the mean over samples and queries of -Σ A ln A / ln S, S keys"
    source = "Zhai et al. 2023, arXiv 2303.06296, section 3"
    cost = _FORWARD
    reveals = "a head that looks at a single token: entropy collapse"

    def measure(self, seen: ProbePass) -> Mapping[str, Tensor]:
        entropies = seen.watched.entropies
        return {layer: torch.cat(found).amin() for layer, found in entropies.items()}


@register_signal
class AttentionEntropyMean(ProbeSignal):
    name = "attention_entropy_mean"
    level = "attention"
    unit = "share of ln S, 0 to 1"
    formula = "as attention_entropy, with the mean over heads"
    source = "Zhai et al. 2023, arXiv 2303.06296, section 3"
    cost = _FORWARD
    reveals = "whether all heads of a block sharpen, or one"

    def measure(self, seen: ProbePass) -> Mapping[str, Tensor]:
        entropies = seen.watched.entropies
        return {layer: torch.cat(found).mean() for layer, found in entropies.items()}


@register_signal
class OutputRms(ProbeSignal):
    name = "output_rms"
    level = "attention"
    unit = "of the activations"
    formula = "√mean(x²) over all elements x of the layer's output"
    cost = _FORWARD
    reveals = "growth of the residual stream, block by block"

    def measure(self, seen: ProbePass) -> Mapping[str, Tensor]:
        return {layer: rms for layer, (rms, _) in seen.watched.outputs.items()}


@register_signal
class OutputKurtosis(ProbeSignal):
    name = "output_kurtosis"
    level = "attention"
    unit = "1 (0 for a Gaussian)"
    formula = "mean((x-μ)⁴)/σ⁴ - 3 over all elements x of the layer's output"
    cost = _FORWARD
    reveals = "a few activations that outgrow all others"

    def measure(self, seen: ProbePass) -> Mapping[str, Tensor]:
        return {layer: kurtosis for layer, (_, kurtosis) in seen.watched.outputs.items()}
