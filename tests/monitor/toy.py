"""A training small enough to be run twice in a test, with and without a Monitor."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import stabkit


class Toy:
    """The same losses and weights, bit for bit, each time it is made."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.data = torch.Generator().manual_seed(1)
        self.losses: list[float] = []

    def monitor(self, folder: Path, **options: Any) -> stabkit.Monitor:
        return stabkit.Monitor(
            self.model, self.optimizer, folder, **{"flush_every": 2, "full_every": 1} | options
        )

    def steps(self, count: int, monitor: stabkit.Monitor | None = None) -> None:
        for _ in range(count):
            loss = self.model(torch.randn(16, 4, generator=self.data)).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            if monitor is not None:
                monitor.log(loss=loss)
            self.losses.append(loss.item())

    def state(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])

    def assert_undisturbed(self) -> None:
        """As if there had been no Monitor."""
        bare = Toy()
        bare.steps(len(self.losses))
        assert self.losses == bare.losses
        assert self.state().equal(bare.state())


def written(monitor: stabkit.Monitor) -> None:
    """Wait until the thread has done, or failed at, all it was given: not a flush."""
    assert monitor._recording.out is not None
    monitor._recording.out.wait()


@contextmanager
def full_disk() -> Iterator[None]:
    """Limit the size of files instead of filling a disk: the write itself fails, half done."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def assert_whole(folder: Path, toy: Toy) -> None:
    """Every row of every step of `toy`, once."""
    run = stabkit.open_run(folder)
    loss = run.scalar("loss")
    assert loss.index.tolist() == list(range(len(toy.losses)))
    assert loss.tolist() == toy.losses
    signals = run.signals()
    assert signals["step"].tolist() == [s for s in range(len(toy.losses)) for _ in range(2)]
    assert signals["layer"].astype(str).tolist() == ["0", "2"] * len(toy.losses)
    assert not signals[["grad_norm", "param_norm", "update_norm", "adam_rms"]].isna().any(axis=None)


def kinds(folder: Path) -> list[str]:
    """Return the kinds of the events, without the note of several parameter groups."""
    found = [str(event["kind"]) for event in stabkit.rundir.RunDir(folder).read_entries()]
    return [kind for kind in found if kind != "param_groups"]
