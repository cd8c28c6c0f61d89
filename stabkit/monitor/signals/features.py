"""Signals of `features` and `teacher`: how a representation spreads, how far its target is.

Shapes: B samples, D features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from stabkit.monitor.probe.probe import ProbePass
from stabkit.monitor.signals.signal import ProbeSignal, register_signal


def feature_std(feature_BD: Tensor) -> Tensor:
    """Return the standard deviation over the batch of unit-length features, mean over D.

    About 1/√D when features spread in all directions, 0 when all images have the same (Chen, He
    2021, SimSiam, section 4.1).
    """
    return F.normalize(feature_BD.double(), dim=1).std(dim=0).mean()


def effective_rank(feature_BD: Tensor) -> Tensor:
    """Return exp(entropy of the singular values' shares): 1 to min(B, D) directions in use.

    RankMe (Garrido et al. 2023, equation 1), whose features are not centred; 0 ln 0 is 0 here,
    where the paper adds 1e-7 to each share. NaN for features that are not finite.
    """
    finite = feature_BD.isfinite().all()
    # singular values by the small Gram matrix; double, as it squares the range
    feature = feature_BD.double().nan_to_num(0.0, 0.0, 0.0)
    gram = feature.T @ feature if feature.shape[0] > feature.shape[1] else feature @ feature.T
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    share = singular / singular.sum().clamp(min=1e-300)  # features of nothing but zeros: rank 1
    rank = torch.special.entr(share).sum().exp()
    return torch.where(finite, rank, float("nan"))


def alignment(one_BD: Tensor, other_BD: Tensor) -> Tensor:
    """Return the mean squared distance of unit-length features of two views: 0 to 4."""
    one, other = F.normalize(one_BD.double(), dim=1), F.normalize(other_BD.double(), dim=1)
    return (one - other).square().sum(dim=1).mean()


def uniformity(feature_BD: Tensor) -> Tensor:
    """Return ln of the mean over pairs of exp(-2 distance²), of unit-length features: -8 to 0."""
    feature = F.normalize(feature_BD.double(), dim=1)
    pairs = torch.triu_indices(len(feature), len(feature), offset=1, device=feature.device)
    cosine = (feature @ feature.T)[pairs[0], pairs[1]]
    # |a - b|² = 2 - 2 a·b
    return (4 * cosine - 4).exp().mean().log()


def mean_cosine(one_BD: Tensor, other_BD: Tensor) -> Tensor:
    one, other = F.normalize(one_BD.double(), dim=1), F.normalize(other_BD.double(), dim=1)
    return (one * other).sum(dim=1).mean()


@register_signal
class ProbeFeatureStd(ProbeSignal):
    name = "probe_feature_std"
    level = "features"
    unit = "1 (healthy near 1/√D)"
    formula = "mean over D of the standard deviation over the batch of z/‖z‖"
    source = "Chen, He 2021, arXiv 2011.10566, section 4.1"
    cost = "one forward of the probe, shared"
    reveals = "complete collapse: every sample gets the same features"

    def measure(self, seen: ProbePass) -> Tensor:
        return feature_std(seen.embedding1)


@register_signal
class ProbeRank(ProbeSignal):
    name = "probe_rank"
    level = "features"
    unit = "directions, 1 to min(B, D)"
    formula = "exp(-Σ p ln p), p: the singular values' shares of their sum"
    source = "Garrido et al. 2023 (RankMe), arXiv 2210.02885, equation 1"
    cost = "one forward of the probe, shared; eigenvalues of a matrix of min(B, D)"
    reveals = "dimensional collapse: features use few directions"

    def measure(self, seen: ProbePass) -> Tensor:
        return effective_rank(seen.embedding1)


@register_signal
class Alignment(ProbeSignal):
    name = "alignment"
    level = "features"
    unit = "squared distance, 0 to 4"
    formula = "mean ‖z₁-z₂‖² of unit-length features of two views of a sample"
    source = "Wang, Isola 2020, arXiv 2005.10242, section 4.1 (exponent 2)"
    cost = "two forwards of the probe, one shared"
    reveals = "views of one sample drift apart"
    needs = ("view1", "view2")

    def measure(self, seen: ProbePass) -> Tensor:
        return alignment(seen.embedding1, seen.embedding2)


@register_signal
class Uniformity(ProbeSignal):
    name = "uniformity"
    level = "features"
    unit = "nats, -8 to 0"
    formula = "ln mean over pairs of samples of exp(-2‖z-y‖²), z and y of unit length"
    source = "Wang, Isola 2020, arXiv 2005.10242, section 4.1 (t = 2)"
    cost = "one forward of the probe, shared"
    reveals = "different samples crowd together: 0 is collapse"

    def measure(self, seen: ProbePass) -> Tensor:
        return uniformity(seen.embedding1)


@register_signal
class TargetCosine(ProbeSignal):
    name = "target_cosine"
    level = "features"
    unit = "1, -1 to 1"
    formula = "mean cosine of the model's and the momentum encoder's features of view1"
    cost = "two forwards of the probe, one shared"
    reveals = "the model leaves its momentum encoder behind, as at a restart"
    needs = ("view1", "target")

    def measure(self, seen: ProbePass) -> Tensor:
        return mean_cosine(seen.embedding1, seen.target_embedding)


@register_signal
class TeacherFeatureStd(ProbeSignal):
    name = "teacher_feature_std"
    level = "teacher"
    unit = "1 (healthy near 1/√D)"
    formula = "probe_feature_std of the teacher's features"
    source = "Chen, He 2021, arXiv 2011.10566, section 4.1"
    cost = "one forward of the probe by the teacher, shared"
    reveals = "complete collapse of what the model is taught, at a loss that looks good"
    needs = ("view1", "target")

    def measure(self, seen: ProbePass) -> Tensor:
        return feature_std(seen.target_embedding)


@register_signal
class TeacherRank(ProbeSignal):
    name = "teacher_rank"
    level = "teacher"
    unit = "directions, 1 to min(B, D)"
    formula = "probe_rank of the teacher's features"
    source = "Garrido et al. 2023 (RankMe), arXiv 2210.02885, equation 1"
    cost = "one forward of the probe by the teacher, shared; eigenvalues"
    reveals = "dimensional collapse of what the model is taught"
    needs = ("view1", "target")

    def measure(self, seen: ProbePass) -> Tensor:
        return effective_rank(seen.target_embedding)
