"""Draw docs/figures/dip.png: the parts of a dip, and what looks like one and is none.

python docs/figures/dip.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from stabkit import find_dips, find_drift, find_outliers

SAMPLES = 1000
STEPS = np.arange(0, 1000, 10)
BLUE, RED, GRAY = "#1f5fa8", "#b3372f", "#777777"


def main() -> None:
    figure = plt.figure(figsize=(9, 6.6), layout="constrained")
    grid = figure.add_gridspec(2, 4, height_ratios=[2.3, 1])
    draw_parts(figure.add_subplot(grid[0, :]))
    rise = 0.5 * (1 - np.exp(-STEPS / 250)) + 0.1
    stall = np.interp(STEPS, [0, 300, 600, 1000], [0.1, 0.35, 0.37, 0.6])
    once = rise - 0.09 * (STEPS == 500)
    sag = np.minimum(rise, 0.53 - 0.00012 * (STEPS - 480))
    end = rise - 0.2 * (STEPS > 760)
    for at, (title, curve) in enumerate(
        {
            "A stall: nothing falls": stall,
            "One evaluation: an outlier": once,
            "A slow sag: a drift": sag,
            "No way back: a dip\nwithout recovery": end,
        }.items()
    ):
        draw_small(figure.add_subplot(grid[1, at]), title, curve)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=130)


def draw_parts(axes: Axes) -> None:
    steps = STEPS[:60]
    curve = 0.5 * (1 - np.exp(-steps / 200)) + 0.1
    curve -= 0.11 * np.exp(-(((steps - 360) / 45.0) ** 4)) * (1 - (steps - 360) / 250)
    accuracy, bits = observed(curve, seed=3)
    dip = find_dips(steps, accuracy, correct=bits).iloc[0]
    onset, trough, recovery = (int(dip[name]) for name in ("onset", "trough", "recovery"))
    at = {step: float(accuracy[steps == step][0]) for step in (onset, trough, recovery)}
    level = at[trough] + float(dip["depth"])
    axes.plot(steps, 100 * accuracy, "o-", ms=3.5, lw=1, color=BLUE)
    inside = (steps >= onset) & (steps <= recovery)
    axes.fill_between(steps[inside], 100 * accuracy[inside], 100 * at[onset], color=RED, alpha=0.15,
                      where=accuracy[inside] < at[onset])  # fmt: skip
    axes.annotate("area", (onset + 14, 100 * (at[onset] - 0.022)), color=RED)
    for name, step, dx, dy in (
        ("onset: the last evaluation before it", onset, -130, 30),
        ("trough: the evaluation farthest below the reference", trough, -80, -34),
        ("recovery: the first of two evaluations\nthat are within noise of the reference",
         recovery, 100, -125),
    ):  # fmt: skip
        axes.annotate(
            name, (step, 100 * at[step]), (dx, dy), textcoords="offset points", ha="center",
            arrowprops={"arrowstyle": "->", "color": GRAY},
        )  # fmt: skip
    axes.annotate(
        "", (trough, 100 * at[trough]), (trough, 100 * level),
        arrowprops={"arrowstyle": "<->", "color": RED, "shrinkA": 0, "shrinkB": 0},
    )  # fmt: skip
    axes.plot([onset, trough], [100 * at[onset], 100 * level], "--", lw=1, color=GRAY)
    depth = f"depth {100 * dip['depth']:.1f} points\nbelow the reference"
    axes.text(trough - 4, 100 * level + 1, depth, color=RED, ha="right")
    found = f"{dip['z']:.0f} standard errors, p = {dip['p_value']:.0e}, {dip['severity']}"
    axes.set(xlabel="step", ylabel="kNN accuracy (%)", title=f"A dip: {found}")
    axes.margins(y=0.18)


def draw_small(axes: Axes, title: str, curve: np.ndarray) -> None:
    accuracy, bits = observed(curve, seed=5)
    dips = find_dips(STEPS, accuracy, correct=bits)
    axes.plot(STEPS, 100 * accuracy, lw=0.9, color=BLUE)
    found = [f"{len(dips)} dip" if len(dips) == 1 else f"{len(dips)} dips"]
    if drifts := len(find_drift(STEPS, accuracy, correct=bits)):
        found.append(f"{drifts} drift")
    if outliers := len(find_outliers(STEPS, accuracy, SAMPLES)):
        found.append(f"{outliers} outlier")
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("found: " + ", ".join(found), fontsize=9)
    axes.set(xticks=[], yticks=[])


def observed(curve: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return accuracies around a curve and their bits: a sample is right below its own bar."""
    rng = np.random.default_rng(seed)
    bars = rng.random(SAMPLES)
    bits = bars[None] < curve[:, None]
    flipped = rng.random(bits.shape) < 0.02
    bits = np.where(flipped, rng.random(bits.shape) < curve[:, None], bits)
    return bits.mean(axis=1), bits


if __name__ == "__main__":
    main()
