import math

import pytest
import torch

from stabkit.monitor.features import effective_rank, feature_std


def gaussian(images: int, dim: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(images, dim, generator=generator)


def test_spread_out_features_have_std_one_over_root_d() -> None:
    """4000 images: the standard deviation is known to about 1/√(2·4000), 1%."""
    assert float(feature_std(gaussian(4000, 64))) == pytest.approx(1 / math.sqrt(64), rel=0.01)
    assert float(feature_std(torch.ones(8, 1) * gaussian(1, 64))) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("shape", [(40, 6), (6, 40)])
def test_rank_is_the_entropy_of_the_singular_values(shape: tuple[int, int]) -> None:
    feature = gaussian(*shape)
    singular = torch.linalg.svdvals(feature.double())
    share = (singular / singular.sum()).tolist()
    expected = math.exp(-sum(p * math.log(p) for p in share))
    assert float(effective_rank(feature)) == pytest.approx(expected, rel=1e-9)
    assert 1 < expected < 6


def test_rank_counts_directions_in_use() -> None:
    eye = torch.eye(16, 8)
    assert float(effective_rank(eye)) == pytest.approx(8)
    eye[:, 3:] = 0
    assert float(effective_rank(eye)) == pytest.approx(3)
    # rounding of the Gram matrix leaves singular values of about 1e-8 of the largest
    assert float(effective_rank(gaussian(1, 8).repeat(20, 1))) == pytest.approx(1, abs=1e-5)
    assert float(effective_rank(torch.zeros(8, 4))) == 1


def test_features_that_are_not_finite_have_no_rank_but_stop_nothing() -> None:
    feature = gaussian(8, 4)
    feature[2, 1] = float("nan")
    assert effective_rank(feature).isnan()
    assert feature_std(feature).isnan()
