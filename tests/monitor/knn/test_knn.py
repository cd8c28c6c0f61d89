"""A kNN evaluation in a loop that is not ours: right, complete, and without a trace."""

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import stabkit
from stabkit import KNN
from stabkit.monitor.knn import samples as samples_module

CLASSES = torch.tensor([2, 5, 9, 11])  # class numbers need not begin at 0 nor follow each other


def samples(n: int, seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    centers = 2 * torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    label = torch.randint(4, (n,), generator=g)
    return centers[label] + torch.randn(n, 6, generator=g), CLASSES[label]


BANK, QUERIES = samples(90, 1), samples(40, 2)


class Restless(nn.Module):
    """BatchNorm, dropout, a buffer written in forward, draws from every generator."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(16, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        noise = random.random() + np.random.rand() + float(torch.rand(()))
        out: Tensor = self.head(self.trunk(x))
        return out + 1e-9 * noise


def training(
    folder: Path | None, knn: Callable[[], KNN] | None = None, steps: int = 23, **options: Any
) -> tuple[list[float], list[Tensor], list[float]]:
    """Return losses, the whole state, and draws after the last step."""
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    model = Restless()
    model.trunk[3].eval()  # modes that differ from module to module
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    monitor = None
    if folder is not None:
        options = ({"knn": knn()} if knn else {}) | options
        monitor = stabkit.Monitor(model, optimizer, folder, flush_every=4, **options)
    for _ in range(steps):
        loss = F.cross_entropy(model(torch.randn(16, 6)), torch.randint(4, (16,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if monitor:
            monitor.log(loss=loss)
        losses.append(loss.item())
    draws = [random.random(), np.random.rand(), torch.rand(()).item()]
    if monitor:
        monitor.close()
    assert [model.training, model.trunk[3].training] == [True, False]
    return losses, [*model.state_dict().values()], draws


def loaders(workers: int = 0) -> KNN:
    """Shuffled, with workers that stay: what a training loader is."""
    bank = DataLoader(
        TensorDataset(*BANK), 32, shuffle=True, num_workers=workers,
        persistent_workers=workers > 0,
    )  # fmt: skip
    return KNN(bank, DataLoader(TensorDataset(*QUERIES), 7, shuffle=True), every=5)


@pytest.mark.lengthy
@pytest.mark.parametrize("knn", [lambda: KNN(BANK, QUERIES, every=5), loaders])
def test_a_training_with_it_is_the_same_to_the_last_bit(
    tmp_path: Path, knn: Callable[[], KNN]
) -> None:
    with_it, without = training(tmp_path, knn), training(None)
    assert with_it[0] == without[0]
    assert with_it[2] == without[2]
    assert all(torch.equal(a, b) for a, b in zip(with_it[1], without[1], strict=True))
    evals = stabkit.open_run(tmp_path).evals("knn_heldout")
    assert evals["step"].tolist() == [0, 5, 10, 15, 20, 23]
    assert told(tmp_path) == []


def oracle(model: nn.Module, k: int, temperature: float) -> list[bool]:
    """Vote by the formula, query by query."""
    model.eval()
    with torch.no_grad():
        bank, queries = model(BANK[0]), model(QUERIES[0])
    right = []
    for query, label in zip(queries, QUERIES[1].tolist(), strict=True):
        cosine = torch.cosine_similarity(query[None], bank)
        near = cosine.argsort(descending=True)[:k]
        votes: dict[int, float] = {}
        for i in near.tolist():
            of = int(BANK[1][i])
            votes[of] = votes.get(of, 0.0) + float((cosine[i] / temperature).exp())
        right.append(max(votes, key=lambda c: votes[c]) == label)
    return right


@pytest.mark.parametrize("loader", [False, True])
def test_its_bits_are_those_of_the_vote_by_the_formula(tmp_path: Path, loader: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    queries = DataLoader(TensorDataset(*QUERIES), 7) if loader else QUERIES
    knn = KNN(BANK, queries, every=2, k=7, temperature=0.2, batch_size=13)
    expected = []
    with stabkit.Monitor(model, optimizer, tmp_path, knn=knn):
        for step in range(4):
            if step % 2 == 0:
                expected.append(oracle(model, 7, 0.2))
                model.train()
            model(torch.randn(16, 6)).square().mean().backward()
            optimizer.step()
    expected.append(oracle(model, 7, 0.2))
    run = stabkit.open_run(tmp_path)
    correct = run.correct("knn_heldout")
    assert correct is not None
    assert correct.tolist() == expected
    assert expected[0] != expected[-1], "the case cannot tell one evaluation from another"
    evals = run.evals("knn_heldout")
    assert evals["value"].tolist() == [sum(bits) / 40 for bits in expected]
    assert evals[["chance", "n", "k"]].drop_duplicates().to_numpy().tolist() == [[0.25, 40, 7]]
    assert evals["temperature"].iloc[0] == pytest.approx(0.2)
    seconds = run.scalar("knn_seconds")
    assert seconds.index.tolist() == [0, 2]
    assert (seconds > 0).all()


def test_embed_is_of_the_model_and_images_or_of_images_alone_or_a_module(tmp_path: Path) -> None:
    def bits(folder: str, embed: Callable[[Restless], Any]) -> list[list[bool]]:
        torch.manual_seed(0)
        model = Restless()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        knn = KNN(BANK, QUERIES, embed(model), every=1)
        with stabkit.Monitor(model, optimizer, tmp_path / folder, knn=knn):
            for _ in range(2):
                model(torch.randn(16, 6)).square().mean().backward()
                optimizer.step()
        correct = stabkit.open_run(tmp_path / folder).correct("knn_heldout")
        assert correct is not None
        return correct.tolist()

    one = bits("two", lambda _: lambda model, images: model.trunk(images))
    assert bits("one", lambda model: lambda images: model.trunk(images)) == one
    assert bits("module", lambda model: model.trunk) == one
    assert bits("default", lambda _: None) != one


def test_a_teacher_outside_of_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, teacher = Restless(), Restless()
    before = [value.clone() for value in teacher.state_dict().values()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with stabkit.Monitor(model, optimizer, tmp_path, knn=KNN(BANK, QUERIES, teacher, every=1)):
        model(torch.randn(16, 6)).sum().backward()
        optimizer.step()
    assert teacher.training
    assert all(map(torch.equal, before, teacher.state_dict().values()))
    assert len(stabkit.open_run(tmp_path).evals("knn_heldout")) == 2


def test_a_resumed_run_has_the_evaluations_of_an_unbroken_one(tmp_path: Path) -> None:
    def steps(folder: str, parts: list[int]) -> list[int]:
        model = nn.Linear(6, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        first = 0
        for last in parts:
            knn = KNN(BANK, QUERIES, every=5)
            with stabkit.Monitor(model, optimizer, tmp_path / folder, first_step=first, knn=knn):
                for _ in range(first, last):
                    model(torch.randn(16, 6)).square().mean().backward()
                    optimizer.step()
            first = last
        return stabkit.open_run(tmp_path / folder).evals("knn_heldout")["step"].tolist()

    assert steps("broken", [7, 10, 12]) == steps("whole", [12]) == [0, 5, 10, 12]


def test_there_is_no_evaluation_of_a_run_without_steps_nor_after_an_error(tmp_path: Path) -> None:
    model = nn.Linear(6, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with stabkit.Monitor(model, optimizer, tmp_path / "none", knn=KNN(BANK, QUERIES)):
        pass
    assert not (tmp_path / "none" / "evals").exists()

    def fails() -> None:
        with stabkit.Monitor(model, optimizer, tmp_path / "error", knn=KNN(BANK, QUERIES)):
            model(torch.randn(16, 6)).sum().backward()
            optimizer.step()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert stabkit.open_run(tmp_path / "error").evals()["step"].tolist() == [0]


def test_the_folder_that_holds_it_says_where_to_go_on(tmp_path: Path) -> None:
    training(tmp_path, lambda: KNN(BANK, QUERIES, every=5), steps=8)
    with pytest.raises(ValueError, match="holds steps 0 to 7 already; pass first_step=8 to"):
        training(tmp_path)


# --- what goes wrong while training


def failing(tmp_path: Path, embed: Any, steps: int = 12) -> list[Any]:
    """Return the log of a run whose training must go on as without an evaluation."""
    with_it = training(tmp_path, lambda: KNN(BANK, QUERIES, embed, every=3), steps)
    without = training(None, steps=steps)
    assert with_it[0] == without[0]
    assert all(torch.equal(a, b) for a, b in zip(with_it[1], without[1], strict=True))
    return told(tmp_path)


def told(folder: Path) -> list[Any]:
    """Return the log without what the loop itself is the cause of."""
    own = "nonfinite", "null_parameters"  # a bias before BatchNorm
    return [entry for entry in stabkit.open_run(folder).log_entries() if entry["kind"] not in own]


def broken(model: nn.Module, images: Tensor) -> Tensor:
    raise RuntimeError("out of memory")


@pytest.mark.parametrize(
    ("embed", "said"),
    [
        (broken, "RuntimeError: out of memory"),
        (
            lambda model, images: images[:, None],
            r"90 images are shape \[90, 1, 6\]; needed is \[90, D\]",
        ),
        (lambda model, images: images[0], r"are shape \[6\]"),
        (lambda model, images: {"features": images}, "are dict; needed is"),
        (lambda images: images @ torch.ones(5, 2), "mat1 and mat2"),
    ],
)
def test_an_evaluation_that_fails_is_said_once_and_off(
    tmp_path: Path, embed: Any, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    (event,) = failing(tmp_path, embed)
    assert (event["kind"], event["name"], event["step"]) == ("signal_failed", "knn_heldout", 0)
    assert re.search(said, event["reason"]), event["reason"]
    assert stabkit.open_run(tmp_path).evals().empty
    assert len([r for r in caplog.records if "knn_heldout" in r.getMessage()]) == 1
    assert stabkit.open_run(tmp_path).status().state == "done"


def test_features_that_are_not_finite_leave_out_their_evaluation_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls = iter(range(99))

    def embed(model: nn.Module, images: Tensor) -> Tensor:
        out = model(images)
        if next(calls) in (2, 4):  # of the bank at step 3, of the bank at step 6
            out[3:5] = float("nan")
        return out

    (event,) = failing(tmp_path, embed)
    assert event["kind"] == "noticed"
    assert "features of 2 of 90 images of the bank are not finite" in event["reason"]
    assert stabkit.open_run(tmp_path).evals()["step"].tolist() == [0, 9, 12]


def test_a_forward_that_trains_is_refused_and_said(tmp_path: Path) -> None:
    def embed(model: nn.Module, images: Tensor) -> Tensor:
        with torch.no_grad():
            model.head.bias.add_(1.0)
        return images

    training(tmp_path, lambda: KNN(BANK, QUERIES, embed, every=3))
    (event,) = told(tmp_path)
    assert "changed 1 of its parameters, head.bias first" in event["reason"]


def test_queries_of_a_class_that_the_bank_lacks_are_told(tmp_path: Path) -> None:
    kept = BANK[1] != 11
    bank = BANK[0][kept], BANK[1][kept]
    training(tmp_path, lambda: KNN(bank, QUERIES, every=5))
    (event,) = told(tmp_path)
    lacking = int((QUERIES[1] == 11).sum())
    assert event["reason"].startswith(f"KNN: {lacking} of 40 queries are of classes that the bank")
    assert stabkit.open_run(tmp_path).evals()["chance"].unique().tolist() == [0.25]


# --- what is refused before anything begins


def refused(tmp_path: Path, match: str, error: type[Exception] = ValueError, **parts: Any) -> None:
    model = nn.Linear(6, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(error, match=match):
        stabkit.Monitor(
            model, optimizer, tmp_path / "run",
            knn=KNN(**({"bank": BANK, "queries": QUERIES} | parts)),
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


class Batches:
    def __init__(self, *batches: Any) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


X, Y = BANK


@pytest.mark.parametrize(
    ("bank", "said"),
    [
        ((X[:0], Y[:0]), "KNN: bank is empty"),
        (Batches(), "KNN: bank is empty: the loader gave no batch"),
        ((X, Y[:-1]), r"images \[90, 6\] and labels \[89\]: not one label for each"),
        ((X, F.one_hot(Y)), r"labels of bank have shape \[90, 12\].*needed is one whole number"),
        ((X, Y.double()), "type torch.float64"),
        ((X[:, :5], Y), r"of the bank has shape \[5\], one of the queries \[6\]"),
        ((X, torch.full_like(Y, 99)), "no class of the queries is in the bank"),
        (Batches((X, Y), (X[:, :5], Y)), r"inputs of different shapes: \[6\], \[5\]"),
        (Batches((X, Y[:5])), r"batch 0 of bank has images"),
    ],
)
def test_samples_that_cannot_be_evaluated_are_refused(tmp_path: Path, bank: Any, said: str) -> None:
    refused(tmp_path, said, bank=bank)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"bank": X}, "bank is of type Tensor; give a DataLoader"),
        ({"queries": "folder"}, "queries is of type str"),
        ({"queries": 5}, "queries is of type int"),
        ({"bank": TensorDataset(*BANK)}, r"bank is a Dataset; give DataLoader\(bank"),
        ({"bank": Batches([X, X, Y])}, "is list of Tensor, Tensor, Tensor; needed are two"),
        ({"bank": Batches([[X, X], Y])}, "is list of list, Tensor; needed are two tensors"),
        ({"bank": Batches({"x": X})}, "is a dict; needed are two tensors"),
        ({"embed": 3}, "embed is 3; it must be a function"),
        ({"embed": lambda a, b, c: a}, "it must be a function of the model and the images"),
    ],
)
def test_other_things_are_refused_with_what_to_give(
    tmp_path: Path, parts: dict[str, Any], said: str
) -> None:
    refused(tmp_path, said, TypeError, **parts)


@pytest.mark.parametrize("sized", [True, False])
def test_a_loader_of_more_than_memory_holds_is_refused(
    tmp_path: Path, sized: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told from the first batch where the loader knows its length."""
    read: list[int] = []

    class Endless:
        def __iter__(self) -> Iterator[Any]:
            while True:
                read.append(1)
                yield QUERIES

    class Long(Endless):
        def __len__(self) -> int:
            return 10**6

    monkeypatch.setattr(samples_module, "LARGEST", 5 * QUERIES[0].nbytes)
    refused(tmp_path, r"bank would hold .* 200 such images", bank=Long() if sized else Endless())
    assert len(read) == (1 if sized else 6)


def test_options_without_sense_are_refused(tmp_path: Path) -> None:
    for name in ("every", "k", "batch_size"):
        refused(tmp_path, f"KNN: {name} must be a whole number from 1 on, got 0", **{name: 0})
    refused(tmp_path, "temperature must be above 0", temperature=0.0)
    one = torch.ones_like(BANK[1])
    refused(tmp_path, "all labels are 1", bank=(X, one), queries=(X + 1, one))
    refused(tmp_path, "bank and queries are the same images", queries=BANK)
    sampler = DistributedSampler(TensorDataset(*BANK), num_replicas=2, rank=0)
    loader = DataLoader(TensorDataset(*BANK), 8, sampler=sampler)
    refused(tmp_path, "DistributedSampler of queries shares the samples", queries=loader)
    model = nn.Linear(6, 4)
    with pytest.raises(TypeError, match=r"knn must be stabkit.KNN\(bank=..., queries=...\)"):
        stabkit.Monitor(
            model, torch.optim.SGD(model.parameters(), lr=0.1), tmp_path / "run",
            knn=(BANK, QUERIES),  # type: ignore[arg-type]
        )  # fmt: skip


def test_the_loaders_of_the_training_may_be_given(tmp_path: Path) -> None:
    """A shuffled loader with a generator of its own draws the same epochs as without it."""

    def epochs(folder: Path | None) -> list[list[int]]:
        data = TensorDataset(*BANK)
        loader = DataLoader(
            data, 30, shuffle=True, generator=torch.Generator().manual_seed(4), drop_last=True
        )
        model = nn.Linear(6, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if folder is not None:
            knn = KNN(loader, QUERIES)
            stabkit.Monitor(model, optimizer, folder, knn=knn).close()
        return [labels.tolist() for _ in range(2) for _, labels in loader]

    assert epochs(tmp_path) == epochs(None)


@pytest.mark.processes
def test_workers_that_stay_are_not_taken_from_the_training(tmp_path: Path) -> None:
    loader = loaders(workers=1).bank
    epoch = iter(loader)
    first = next(epoch)
    model = nn.Linear(6, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    stabkit.Monitor(model, optimizer, tmp_path, knn=KNN(loader, QUERIES)).close()
    assert loader.persistent_workers
    assert loader._iterator is epoch
    rest = list(epoch)
    seen = torch.cat([images for images, _ in [first, *rest]])
    assert sorted(seen.flatten().tolist()) == sorted(BANK[0].flatten().tolist())
