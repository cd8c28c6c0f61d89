"""kNN classification beside its floors, lightly, faiss and sklearn: python -m benchmarks.speed.knn

Also what `knn_bank` adds to a step of the `tiny` preset. All subjects of a size take turns.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from lightly.utils.benchmarking import knn_predict as lightly_predict
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits
from torch import Tensor

from benchmarks.lib.results import Row, Times, parser, publish
from benchmarks.lib.trainings import tiny
from stabkit.config import KnnConfig, load_config
from stabkit.train.data.load import load_data
from stabkit.train.heldout_knn import HeldoutKnn, encode
from stabkit.train.knn import KnnBank, knn_predict

K, TEMPERATURE, CLASSES = KnnConfig().k, KnnConfig().temperature, 10
HELD = 2**26  # similarities a chunk of whoever writes all of them, 256 MiB

# queries, bank, dim; then how many of the queries are asked and in how many turns: in full, and
# quickly. All of them would take half an hour. Not fewer than 512: faiss takes fifteen times as
# long a query for 256; and of 512 ours pays in full for normalising the bank, which it does itself.
SIZES = (
    ((1_000, 5_000, 64), (1_000, 15), (1_000, 5)),
    ((10_000, 50_000, 384), (2_048, 2), (512, 2)),
    ((50_000, 1_280_000, 384), (512, 2), None),
)


FLOORS = "product, then selection"


def features(rows: int, dim: int, labels: Tensor, centres: Tensor) -> Tensor:
    """Unit features [rows, dim] around the centre of their class; made in place, part by part."""
    made = torch.empty(rows, dim, device=labels.device)
    for part, label in zip(made.split(2**16), labels.split(2**16), strict=True):
        part.normal_().add_(centres[label], alpha=0.5)
        part.div_(part.norm(dim=1, keepdim=True))
    return made


def turns(
    subjects: dict[str, Callable[[], Any]], rounds: int, device: torch.device
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of each, all once a round, every time from another; what they gave."""
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    gave = {}
    names = list(subjects)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            began = time.perf_counter()
            gave[name] = subjects[name]()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - began)
    return seconds, gave


def vote(cosine: Tensor, index: Tensor, labels: Tensor) -> Tensor:
    weight = ((cosine - cosine[:, :1]) / TEMPERATURE).exp()
    votes = torch.zeros(len(cosine), CLASSES, device=cosine.device)
    return votes.scatter_add_(1, labels[index], weight).argmax(dim=1)


def by_topk(similarity: Tensor) -> Any:
    return similarity.topk(K, dim=1, sorted=False)


def by_argpartition(similarity: Tensor) -> Any:
    return np.argpartition(similarity.numpy(), similarity.shape[1] - K, axis=1)[:, -K:]


def faster_selection(similarity: Tensor) -> Callable[[Tensor], Any]:
    if similarity.device.type != "cpu":
        return by_topk
    few = similarity[:256]
    found, _ = turns(
        {"topk": lambda: by_topk(few), "numpy": lambda: by_argpartition(few)}, 3, few.device
    )
    return by_topk if min(found["topk"]) < min(found["numpy"]) else by_argpartition


def size_rows(
    size: tuple[int, int, int], asked: int, rounds: int, given: argparse.Namespace
) -> tuple[list[Row], str]:
    _, entries, dim = size
    device = torch.device(given.device)
    torch.manual_seed(0)
    centres = torch.randn(CLASSES, dim, device=device)
    labels, query_labels = (torch.randint(CLASSES, (n,), device=device) for n in (entries, asked))
    bank, query = (features(len(which), dim, which, centres) for which in (labels, query_labels))
    chunk = min(asked, HELD // entries)

    def ours() -> Tensor:
        return knn_predict(query, bank, labels, CLASSES, K, TEMPERATURE)

    before = peak(reset=True)
    predicted = ours()
    memory = peak() - before
    select = faster_selection(query[:chunk] @ bank.T)

    def floors() -> None:
        for part in query.split(chunk):
            select(part @ bank.T)

    def lightly() -> Tensor:
        found = [
            lightly_predict(part, bank.T, labels, CLASSES, K, TEMPERATURE)[:, 0]
            for part in query.split(chunk)
        ]
        return torch.cat(found)

    subjects: dict[str, Callable[[], Any]] = {
        "ours": ours, FLOORS: floors, "lightly": lightly,
    }  # fmt: skip
    if device.type == "cpu":
        subjects |= cpu_peers(query, bank, labels)
    if rounds > 2:
        turns(subjects, 1, device)  # uncounted
    seconds, gave = turns(subjects, rounds, device)
    answers = {name: gave[name] for name in subjects if name not in ("ours", FLOORS)}
    rows = []
    shape = " × ".join(f"{n:,}" for n in size)  # noqa: RUF001
    part = "" if asked == size[0] else f"{asked:,} of the queries"
    for name in list(subjects)[1:]:
        goal = 1.5 if name == FLOORS else 1.0
        times = Times(seconds["ours"], seconds[name])
        peer = f"{name} ({select.__name__[3:]})" if name == FLOORS else name
        rows.append(times.row(f"knn_predict {shape}", peer, "at most", goal, note=part))
    equal = ", ".join(
        f"{float((answer.to(device) == predicted).double().mean()):.4%} {name}"
        for name, answer in answers.items()
    )
    held = f"; the first call raised the peak of memory by {memory / 2**20:,.0f} MiB"
    note = f"{shape}: the same class as {equal}{held if device.type == 'cpu' else ''}."
    return rows, note


def peak(reset: bool = False) -> int:
    """Bytes of memory at most since the last reset; 0 where Linux does not tell."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def cpu_peers(query: Tensor, bank: Tensor, labels: Tensor) -> dict[str, Callable[[], Tensor]]:
    index = faiss.IndexFlatIP(bank.shape[1])
    index.add(bank.numpy())
    neighbours = NearestNeighbors(n_neighbors=K, algorithm="brute").fit(bank.numpy())

    def searched(where: faiss.IndexFlatIP, asked: Tensor) -> Tensor:
        cosine, found = where.search(asked.numpy(), K)
        return vote(torch.from_numpy(cosine), torch.from_numpy(found), labels)

    def by_faiss() -> Tensor:
        """From features as a network gives them, as ours: every evaluation has a new bank."""
        new = faiss.IndexFlatIP(bank.shape[1])
        new.add(F.normalize(bank, dim=1).numpy())
        return searched(new, F.normalize(query, dim=1))

    def by_sklearn() -> Tensor:
        distance, found = neighbours.kneighbors(query.numpy())
        cosine = torch.from_numpy(1 - distance**2 / 2).float()
        return vote(cosine, torch.from_numpy(found), labels)

    return {
        "faiss": by_faiss,
        "faiss, its index made before": lambda: searched(index, query),
        "sklearn": by_sklearn,
    }


def bank_row(given: argparse.Namespace) -> Row:
    """What the free bank adds to a step on average, over the step."""
    device = torch.device(given.device)
    config, training = load_config("tiny", []), tiny(torch.device(given.device), None)
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
    """Where the time of an evaluation goes: the search beside the encoding of its images."""
    device = torch.device(given.device)
    settings = ["data.num_train=1000"]
    config = load_config("tiny", settings)
    heldout = HeldoutKnn(*load_data(config.data, 0), config.knn, config.data.image_size, device)
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
    return times.row("knn_heldout of tiny, its search", "its encoding", "at most", note=note)


def main() -> None:
    given = parser(__doc__ or "").parse_args()
    torch.set_num_threads(given.threads)
    faiss.omp_set_num_threads(given.threads)
    with threadpool_limits(given.threads):
        rows, notes = [bank_row(given), heldout_row(given)], []
        for size, full, quick in SIZES:
            how = quick if given.quick else full
            if how is not None:
                found, note = size_rows(size, *how, given)
                rows += found
                notes.append(note)
    notes.append(
        f"k = {K}, τ = {TEMPERATURE}. Whoever writes the whole product (the floors, lightly) is "
        "called with as many queries as make 256 MiB of it. Classes differ where two of them have "
        "as many votes up to float32's rounding, or two entries are the k-th nearest up to it."
    )
    publish(rows, given, peers=("lightly", "faiss-cpu", "scikit-learn"), notes=notes)


if __name__ == "__main__":
    main()
