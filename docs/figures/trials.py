"""Draw docs/figures/trials.png: what every run in search of dips in mid-training showed.

python docs/figures/trials.py

The runs are those of docs/studies.md; trials.csv holds a row for each outcome.
"""

from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import pandas as pd

HERE = Path(__file__).parent
LOOKS = {  # outcome -> marker, color
    "rises": ("o", "#1f5fa8"),
    "restless": ("s", "#8a8a8a"),
    "dips and recovers": ("v", "#e08214"),
    "falls and stays lower": ("v", "#b3372f"),
    "collapses": ("X", "#4d0f0b"),
}
TICKS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16)
APART = 0.17  # rows, between outcomes of one setting and rate


def main() -> None:
    runs = pd.read_csv(HERE / "trials.csv").groupby(["setting", "lr", "seen"], sort=False)["runs"]
    counts = runs.sum().reset_index()
    settings = counts["setting"].unique().tolist()
    figure, axes = plt.subplots(figsize=(9, 4.4), layout="constrained")
    for (setting, lr), here in counts.groupby(["setting", "lr"]):
        ordered = here.set_index("seen").reindex(
            [seen for seen in LOOKS if seen in {*here["seen"]}]
        )
        for i, (seen, row) in enumerate(ordered.iterrows()):
            marker, color = LOOKS[str(seen)]
            y = settings.index(setting) + APART * (2 * i - len(ordered) + 1)
            axes.scatter(lr, y, s=55, marker=marker, color=color)
            if row["runs"] > 1:
                # Above a mark that is alone: rates lie close together. Beside one of a stack.
                place = ((0, 9), "center") if len(ordered) == 1 else ((7, 0), "left")
                axes.annotate(f"{row['runs']}", (lr, y), place[0], textcoords="offset points",
                              ha=place[1], va="center", fontsize=8, color=color)  # fmt: skip
    for seen, (marker, color) in LOOKS.items():
        axes.scatter([], [], s=55, marker=marker, color=color, label=seen)
    axes.set_xscale("log")
    axes.set_xticks(TICKS, [f"{rate:g}" for rate in TICKS])
    axes.minorticks_off()
    axes.set_xlabel("base learning rate; a number beside a mark counts its runs")
    axes.set_yticks(range(len(settings)), settings)
    axes.set_ylabel("batch x steps")
    axes.invert_yaxis()
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(LOOKS), frameon=False)
    figure.savefig(HERE / "trials.png", dpi=130)


if __name__ == "__main__":
    main()
