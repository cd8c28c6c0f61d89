"""Print how near each scale is to the paper's: python -m benchmarks.regimes

A shorter run is in the paper's regime if its warm-up, memories and decay are the same shares of the
run (MoCo v3: ViT-B, batch 4,096, 100 epochs of ImageNet). `--write` puts the table into
docs/studies.md.
"""

import argparse

from benchmarks.lib.pages import fill
from benchmarks.lib.results import ROOT
from benchmarks.study_cost import WIDTHS
from stabkit.config import RunConfig, load_config
from stabkit.config.schedule import lr_at
from stabkit.sweep.grid import load_sweep

DOCS = ROOT / "docs" / "studies.md"
IMAGES = {"imagefolder": 1_281_167, "parquet": 50_000}  # ImageNet, CIFAR-10
ONE_SIDED = "width / values of a patch"  # a projection that is wide enough loses nothing


def ratios(config: RunConfig) -> dict[str, float]:
    """Return the settings of a run in units of the run."""
    optim, steps, batch = config.optim, config.train.steps, config.train.batch
    images = config.data.num_train or IMAGES[config.data.name]
    total_lr = sum(lr_at(step, steps, optim, batch) for step in range(steps))
    memory = 1 / (1 - optim.beta2)
    patch = 3 * (config.model.patch_size or 16) ** 2
    return {
        "warm-up / run": optim.warmup_steps / steps,
        "memory of Adam's second moment / run": memory / steps,
        "warm-up / that memory": optim.warmup_steps / memory,
        "memory of the momentum encoder / run": 1 / (1 - config.method.momentum) / steps,
        "sum of learning rate · weight decay": total_lr * optim.weight_decay,
        "batch / training images": batch / images,
        "steps between kNN evaluations / run": config.knn.every / steps,
        ONE_SIDED: WIDTHS.get(config.model.name, config.model.width) / patch,
    }


def scales() -> dict[str, RunConfig]:
    """Return a run of each scale, the paper's first; of grids the one at its largest rate."""
    grid, mid, shares = (
        max((run.config for run in load_sweep(file).runs), key=lambda config: config.optim.lr)
        for file in (
            ROOT / f"sweeps/{name}.yaml" for name in ("lr_grid", "mid_training", "paper_shares")
        )
    )
    return {
        "imagenet (paper)": load_config("imagenet"),
        "cifar": load_config("cifar"),
        "lr_grid, lr 7e-2": grid,
        "paper_shares, lr 7.5e-2": shares,
        "mid_training, lr 4e-2": mid,
        "tiny": load_config("tiny"),
    }


def is_near(name: str, value: float, paper: float) -> bool:
    """Return whether a ratio lies within a factor of 2 of the paper's."""
    return 0.5 <= value / paper <= (float("inf") if name == ONE_SIDED else 2)


def page() -> str:
    """Return the table as it stands in docs/studies.md; what is not near is bold."""
    found = {name: ratios(config) for name, config in scales().items()}
    paper = next(iter(found.values()))
    lines = [f"| | {' | '.join(found)} |", "| --- " * (len(found) + 1) + "|"]
    for name, wanted in paper.items():
        cells = [
            f"{own[name]:.2g}" if is_near(name, own[name], wanted) else f"**{own[name]:.2g}**"
            for own in found.values()
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(["", *lines, ""])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--write", action="store_true", help="put the table into docs/studies.md")
    if options.parse_args().write:
        fill(DOCS, "regimes", page())
    else:
        print(page())


if __name__ == "__main__":
    main()
