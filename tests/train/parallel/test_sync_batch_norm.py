"""Against torch.nn.BatchNorm1d and 2d on the rows of all processes at once."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stabkit.monitor.ranks import active, rank
from stabkit.train.parallel.reduce import own_rows, process_group
from stabkit.train.parallel.sync_batch_norm import SyncBatchNorm, synchronize_batch_norms
from tests.train.processes import results

pytestmark = pytest.mark.processes

CASES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "rows": (lambda: nn.BatchNorm1d(5), (12, 5)),
    "positions": (lambda: nn.BatchNorm1d(5, momentum=0.3), (12, 5, 4)),
    "images": (lambda: nn.BatchNorm2d(5, eps=1e-2), (12, 5, 3, 2)),
    "not affine": (lambda: nn.BatchNorm1d(5, affine=False), (12, 5)),
    "cumulative": (lambda: nn.BatchNorm2d(5, momentum=None), (12, 5, 3, 2)),
    "untracked": (lambda: nn.BatchNorm1d(5, track_running_stats=False), (12, 5)),
}
SHARES = {2: [8, 4], 3: [5, 1, 6]}  # a process may hold few rows, even one


def net(case: str) -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(CASES[case][0]()).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter, 1.0)
    return made


def inputs(case: str) -> tuple[Tensor, Tensor]:
    """Return two batches, and the weights of their outputs in the loss: [2, B, C, …] both."""
    generator = torch.Generator().manual_seed(1)
    shape = (2, *CASES[case][1])
    return tuple(torch.randn(shape, dtype=torch.float64, generator=generator) + 2 for _ in range(2))  # type: ignore[return-value]


def two_steps(made: nn.Sequential, case: str, rows: slice) -> dict[str, Tensor]:
    """Return outputs and gradients of sums over `rows`, then the output in evaluation."""
    found: dict[str, Tensor] = {}
    batches, weights = inputs(case)
    for step, (x, weight) in enumerate(zip(batches[:, rows], weights[:, rows], strict=True)):
        x.requires_grad_()
        y = made(x)
        (y.square() * weight).sum().backward()
        assert x.grad is not None
        found |= {f"output {step}": y.detach(), f"input gradient {step}": x.grad}
    found |= {f"gradient {n}": p.grad for n, p in made.named_parameters() if p.grad is not None}
    with torch.no_grad():
        found["no grad"] = made(batches[0, rows])
    found["evaluation"] = made.eval()(batches[0, rows]).detach()
    return found | made.state_dict()


def own_part(shares: list[int]) -> dict[str, dict[str, Tensor]]:
    found = {}
    with process_group(cuda=False):
        first = sum(shares[: rank()])
        for case in CASES:
            made = net(case)
            before = list(made.state_dict())
            synchronize_batch_norms(made)
            assert isinstance(made[0], SyncBatchNorm)
            assert list(made.state_dict()) == before, "checkpoints must be interchangeable"
            found[case] = two_steps(made, case, slice(first, first + shares[rank()]))
    return found


@pytest.mark.parametrize("processes", SHARES)
def test_it_equals_batch_norm_of_all_rows(processes: int, tmp_path: Path) -> None:
    parts = results(processes, tmp_path, own_part, SHARES[processes])
    for case in CASES:
        expected = two_steps(net(case), case, slice(None))
        for name, value in expected.items():
            of_process = [part[case][name] for part in parts]
            if name.startswith(("output", "input", "no grad", "evaluation")):
                got = torch.cat(of_process)
            elif name.startswith("gradient"):
                got = torch.stack(of_process).sum(dim=0)
            else:
                got = of_process[0]
                assert all(got.equal(other) for other in of_process), (case, name)
            torch.testing.assert_close(
                got, value, rtol=1e-10, atol=1e-11, msg=lambda m, k=f"{case} {name}": f"{k}: {m}"
            )


def far_from_zero() -> Tensor:
    with process_group(cuda=False):
        made = nn.Sequential(nn.BatchNorm1d(1, momentum=1.0))
        synchronize_batch_norms(made)
        generator = torch.Generator().manual_seed(rank())
        x = 1000 + 0.1 * torch.randn(500, 1, generator=generator)
        made(x)
        return torch.cat([x.flatten(), made.state_dict()["0.running_var"]])


def test_a_mean_far_above_the_spread_leaves_the_variance_its_digits(tmp_path: Path) -> None:
    """Squares of 1000 in float32 are 0.06 apart; the variance is 0.01."""
    found = results(2, tmp_path, far_from_zero)
    rows = torch.cat([part[:-1] for part in found]).double()
    for part in found:
        assert float(part[-1]) == pytest.approx(float(rows.var()), rel=1e-4)


def of_half_precision() -> list[Tensor]:
    """Return output, gradients of input, weight and bias, and the running variance."""
    with process_group(cuda=False):
        made = nn.Sequential(nn.BatchNorm1d(5))
        if active():
            synchronize_batch_norms(made)
        generator = torch.Generator().manual_seed(0)
        x = (3 + torch.randn(2, 40, 5, generator=generator)).bfloat16()
        own = own_rows(40)
        given = x[0, own].requires_grad_()
        y = made(given)
        (y * x[1, own]).float().sum().backward()
        assert y.dtype == torch.bfloat16
        return [y.detach(), given.grad, *(p.grad for p in made.parameters()), made[0].running_var]  # type: ignore[list-item]


def test_half_precision_is_computed_in_float32_as_torch_does(tmp_path: Path) -> None:
    parts, expected = results(2, tmp_path, of_half_precision), of_half_precision()
    for i, value in enumerate(expected):
        both = [part[i] for part in parts]
        got = torch.cat(both) if i < 2 else both[0] + both[1] if i < 4 else both[0]
        tolerance = {"rtol": 2**-7, "atol": 1e-2} if i < 2 else {"rtol": 1e-3, "atol": 1e-3}
        torch.testing.assert_close(got, value, **tolerance)


def test_a_batch_norm_of_another_kind_is_refused_by_name() -> None:
    from timm.layers import BatchNormAct2d  # here: each process of the other tests would import it

    with pytest.raises(ValueError, match="1: BatchNormAct2d cannot take its statistics over"):
        synchronize_batch_norms(nn.Sequential(nn.BatchNorm2d(3), BatchNormAct2d(3)))
