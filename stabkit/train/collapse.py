"""Two numbers that fall when a representation collapses, whatever the loss says.

Shapes: B images, D features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def feature_std(feature_BD: Tensor) -> Tensor:
    """Standard deviation over the batch of unit-length features, mean over D.

    About 1/√D when features spread in all directions, 0 when all images have the same (Chen, He
    2021, SimSiam, section 4.1).
    """
    return F.normalize(feature_BD.double(), dim=1).std(dim=0).mean()


def effective_rank(feature_BD: Tensor) -> Tensor:
    """exp(entropy of the singular values' shares): 1 to min(B, D) directions in use.

    RankMe (Garrido et al. 2023, equation 1), whose features are not centred. NaN for features that
    are not finite.
    """
    finite = feature_BD.isfinite().all()
    # singular values by the small Gram matrix; double, as it squares the range
    feature = feature_BD.double().nan_to_num(0.0, 0.0, 0.0)
    gram = feature.T @ feature if feature.shape[0] > feature.shape[1] else feature @ feature.T
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    share = singular / singular.sum().clamp(min=1e-300)  # features of nothing but zeros: rank 1
    rank = torch.special.entr(share).sum().exp()
    return torch.where(finite, rank, float("nan"))
