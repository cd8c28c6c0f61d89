"""Print what each study costs at each scale, as arithmetic: python -m benchmarks.study_cost

No GPU has been measured. Hours follow from the products that a step makes and from a share of the
GPU's peak that is assumed (`USE`); `--write` puts the tables into docs/studies.md.
"""

import argparse
from math import sqrt

from scipy.stats import fisher_exact, nct, t

from benchmarks.lib.pages import fill
from benchmarks.lib.results import ROOT
from stabkit.config import RunConfig
from stabkit.sweep.grid import load_sweep

DOCS = ROOT / "docs" / "studies.md"
PEAK = 989e12  # products and sums a second of an H100 SXM in bfloat16, dense (NVIDIA's data sheet)
USE = {"imagenet": 0.30, "cifar": 0.10}  # the share of the peak; small layers fill less of a GPU
DOLLARS = 2.50  # an hour of one H100, assumed
# Seconds of one core for a step, and for an image and block of it, evaluations included: from runs
# with 64 images and 6 blocks (.18 s a step), and 512 and 3 (.42 s; 2026-12-01, AMD EPYC).
STEP_S, BLOCK_S = 0.10, 2.1e-4
CORE_DOLLARS = 0.05  # an hour of one core, assumed
WIDTHS = {"vit_small_patch16_224": 384, "vit_base_patch16_224": 768}  # of 12 blocks each
# Passes of an image and step in units of one forward pass: forward and backward are three, the
# momentum encoder's forward is one, of each of two views.
PASSES = {"moco": 8, "byol": 8, "simclr": 6, "swav": 6, "supervised": 3}
SPREAD = 2.5  # points: standard deviation of paired differences of seeds, scale tiny (median)
PAIRS = (3, 4, 5, 10, 20)


def forward_flops(config: RunConfig) -> float:
    """Return the products and sums of one forward pass of one image, heads included."""
    model, method = config.model, config.method
    width = WIDTHS.get(model.name, model.width)
    depth = 12 if model.name in WIDTHS else model.depth
    patch = model.patch_size or 16
    tokens = (config.data.image_size // patch) ** 2 + 1
    blocks = depth * (12 * width**2 * tokens + 2 * tokens**2 * width)
    embedding = tokens * 3 * patch**2 * width
    heads = width * method.hidden + method.hidden**2 + method.hidden * method.out
    return 2.0 * (blocks + embedding + heads)


def run_flops(config: RunConfig) -> float:
    """Return those of a whole run, kNN evaluations included."""
    passes = config.train.batch * PASSES[config.method.name]
    looks = (config.knn.queries + config.knn.bank) / config.knn.every
    return config.end * (passes + looks) * forward_flops(config)


def detectable(pairs: int, power: float = 0.8) -> float:
    """Return the paired difference, in standard deviations, that a t test at 5 % finds so often."""
    low, high = 0.0, 50.0
    bar = t.ppf(0.975, pairs - 1)
    for _ in range(60):
        middle = (low + high) / 2
        found = nct.sf(bar, pairs - 1, middle * sqrt(pairs))
        low, high = (middle, high) if found < power else (low, middle)
    return high


def step_s(run: RunConfig) -> float:
    """Return the seconds that a step takes on one core, evaluations included."""
    return STEP_S + BLOCK_S * run.train.batch * run.model.depth


def costs() -> list[str]:
    lines = ["| study | scale | runs | steps | hours | dollars |", "| --- " * 6 + "|"]
    for file in sorted((ROOT / "sweeps").glob("*.yaml")):
        for scale in load_sweep(file).scales or (None,):
            runs = [run.config for run in load_sweep(file, scale).runs]
            steps, kind = sum(run.end for run in runs), str(scale or "tiny").partition("_")[0]
            if kind in USE:
                hours = sum(map(run_flops, runs)) / (PEAK * USE[kind]) / 3600
                cell = f"{hours:,.0f} GPU" if hours >= 10 else f"{hours:.1f} GPU"
                dollars = hours * DOLLARS
            else:
                hours = sum(run.end * step_s(run) for run in runs) / 3600
                cell, dollars = f"{hours:.1f} core", hours * CORE_DOLLARS
            money = f"{dollars:,.0f}" if dollars >= 10 else f"{dollars:.2f}"
            cells = (f"`{file.stem}`", scale or "tiny", len(runs), f"{steps:,}", cell, money)
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def power() -> list[str]:
    lines = [
        "| pairs of runs | found 4 times in 5 | at tiny | p if all dip on one side alone |",
        "| --- " * 4 + "|",
    ]
    for pairs in PAIRS:
        size = detectable(pairs)
        p = fisher_exact([[pairs, 0], [0, pairs]]).pvalue
        lines.append(
            f"| {pairs} | {size:.2f} standard deviations | {size * SPREAD:.1f} points | {p:.2g} |"
        )
    return lines


def page() -> str:
    """Return both tables as they stand in docs/studies.md."""
    return "\n".join(["", *costs(), "", *power(), ""])


def main() -> None:
    options = argparse.ArgumentParser(description="Print what the studies cost.")
    options.add_argument("--write", action="store_true", help="put the tables into docs/studies.md")
    if options.parse_args().write:
        fill(DOCS, "cost", page())
    else:
        print(page())


if __name__ == "__main__":
    main()
