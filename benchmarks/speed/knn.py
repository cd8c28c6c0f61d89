"""What the kNN evaluations add to a training: python -m benchmarks.speed.knn

`knn_bank` beside a step of the `tiny` preset, the search of `knn_heldout` beside the encoding of
its images, and `knn_predict` beside the function that lightly offers for the same vote. The last
has no goal: an evaluation is judged as a whole. All subjects of a comparison take turns.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.lib.results import Row, Times, parser, publish
from benchmarks.lib.timing import wait
from benchmarks.lib.trainings import tiny
from stabkit.config import KnnConfig, load_config
from stabkit.monitor.knn.vote import knn_predict
from stabkit.train.data.load import load_data
from stabkit.train.heldout_knn import HeldoutKnn, encode
from stabkit.train.knn_bank import KnnBank

K, TEMPERATURE, CLASSES = KnnConfig().k, KnnConfig().temperature, 10
SIMILARITIES = 2**26  # that lightly, which makes a chunk of them whole, holds at once: 256 MiB
SIZES = (  # queries, bank entries, width
    (1_000, 5_000, 64),
    (2_048, 50_000, 384),
)


def main() -> None:
    given = parser(__doc__ or "").parse_args()
    torch.set_num_threads(given.threads)
    rows, notes = [bank_row(given), heldout_row(given)], []
    for size in SIZES[:1] if given.quick else SIZES:
        row, equal = predict_row(*size, given)
        rows.append(row)
        notes.append(
            f"{row.what}: {equal:.4%} of the queries get the same class. Classes differ where two "
            "have the same number of votes, or two entries the same distance, up to float32's "
            "rounding."
        )
    publish(rows, given, peers=("lightly",), notes=[*notes, f"k = {K}, τ = {TEMPERATURE}."])


def turns(
    subjects: dict[str, Callable[[], Any]], rounds: int, device: torch.device
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Return the seconds of each subject and its last result. Each round starts with another."""
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    results = {}
    names = list(subjects)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            began = time.perf_counter()
            results[name] = subjects[name]()
            wait(device)
            seconds[name].append(time.perf_counter() - began)
    return seconds, results


def bank_row(given: argparse.Namespace) -> Row:
    """Return what the free bank adds to an average step, over the step."""
    device = torch.device(given.device)
    config, training = load_config("tiny", []), tiny(device, None)
    size = round(config.knn.fifo * (config.data.num_train or 0))
    bank = KnnBank(size, config.model.width, device)
    batch, every = training.batch, KnnConfig().every
    query = torch.randn(batch, config.model.width, device=device)
    labels, ids = (torch.randint(n, (batch,), device=device) for n in (CLASSES, 5000))
    for _ in range(-(-size // batch)):
        bank.add(query, labels, ids)

    def add() -> None:
        for _ in range(10):
            bank.add(query, labels, ids)

    def predict() -> None:
        for _ in range(10):
            bank.predict(query, ids, CLASSES, config.knn.k, TEMPERATURE)

    def step() -> None:
        training.optimizer.zero_grad()
        training.loss(training.step).backward()
        training.optimizer.step()
        training.step += 1

    subjects = {"add": add, "predict": predict, "step": step}
    turns(subjects, 1, device)
    found, _ = turns(subjects, 6 if given.quick else 15, device)
    ours = [a / 10 + p / 10 / every for a, p in zip(found["add"], found["predict"], strict=True)]
    note = f"an addition and 1 in {every} of a prediction from {size} entries"
    return Times(ours, found["step"]).row("knn_bank", "step of tiny", "at most", 0.01, note=note)


def heldout_row(given: argparse.Namespace) -> Row:
    """Return the time of an evaluation's search over that of encoding its images."""
    device = torch.device(given.device)
    config = load_config("tiny", ["data.num_train=1000"])
    heldout = HeldoutKnn(*load_data(config.data), config.knn, config.data.image_size, device)
    backbone = tiny(device, None).model.backbone
    bank, queries = encode(backbone, heldout.bank), encode(backbone, heldout.queries)
    subjects: dict[str, Callable[[], Any]] = {
        "search": lambda: knn_predict(
            queries, bank, heldout.bank_labels, CLASSES, heldout.k, TEMPERATURE
        ),
        "encode": lambda: [encode(backbone, images) for images in (heldout.bank, heldout.queries)],
    }
    found, _ = turns(subjects, 2 if given.quick else 6, device)
    note = f"{len(queries):,} queries, {len(bank):,} entries"
    times = Times(found["search"], found["encode"])
    return times.row("knn_heldout of tiny, its search", "its encoding", "at most", 0.1, note=note)


def predict_row(
    asked: int, entries: int, width: int, given: argparse.Namespace
) -> tuple[Row, float]:
    """Return `knn_predict` beside lightly's, and the share of queries with the same class."""
    from lightly.utils.benchmarking import knn_predict as lightly_predict

    device = torch.device(given.device)
    torch.manual_seed(0)
    centers = torch.randn(CLASSES, width, device=device)
    labels, query_labels = (torch.randint(CLASSES, (n,), device=device) for n in (entries, asked))
    bank, query = features(labels, centers), features(query_labels, centers)

    def ours() -> Tensor:
        return knn_predict(query, bank, labels, CLASSES, K, TEMPERATURE)

    def lightly() -> Tensor:
        chunks = query.split(max(1, min(asked, SIMILARITIES // entries)))
        return torch.cat(
            [
                lightly_predict(part, bank.T, labels, CLASSES, K, TEMPERATURE)[:, 0]
                for part in chunks
            ]
        )

    subjects: dict[str, Callable[[], Any]] = {"ours": ours, "lightly": lightly}
    turns(subjects, 1, device)
    seconds, results = turns(subjects, 2 if given.quick else 6, device)
    what = f"knn_predict, {asked:,} queries, {entries:,} entries, width {width}"
    equal = float((results["ours"] == results["lightly"]).double().mean())
    return Times(seconds["ours"], seconds["lightly"]).row(what, "lightly", "at most"), equal


def features(labels: Tensor, centers: Tensor) -> Tensor:
    """Return unit features [len(labels), width] around the center of their class."""
    made = centers[labels] * 0.5 + torch.randn(len(labels), centers.shape[1], device=labels.device)
    return torch.nn.functional.normalize(made, dim=1)


if __name__ == "__main__":
    main()
