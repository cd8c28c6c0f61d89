"""Make a branch study by hand: a parent that dips, and branches that do or do not."""

from pathlib import Path

import numpy as np

from stabkit.rundir import RunDir, Status
from stabkit.store.writer import Writer
from stabkit.yamlio import dump_yaml

EVERY, LAST, ONSET, END, HORIZON, BEGIN = 5, 400, 150, 190, 300, 130
SAMPLES, LEVEL, DEPTH = 1000, 0.5, 0.15


def plant(folder: Path, seed: int, first: int = 0, dip: int | None = ONSET, state: str = "done",
          last: int = LAST, offset: float = 0.0) -> None:  # fmt: skip
    """Write a run whose accuracy falls by DEPTH for 40 steps from `dip` on."""
    folder.mkdir(parents=True)
    rundir = RunDir(folder)
    rundir.config_file.write_text("seed: 0\n")
    rundir.write_status(Status(state, last, last))  # type: ignore[arg-type]
    writer = Writer(folder, "planted")
    # which images are hard is the same in every run; a few answers flip at each evaluation
    hard = np.random.default_rng(0).random(SAMPLES)
    rng = np.random.default_rng(seed)
    for step in range(first, last + 1, EVERY):
        low = dip is not None and dip < step <= dip + END - ONSET
        level = LEVEL - DEPTH * low + offset * (step > HORIZON - 40)
        correct = hard + 0.02 * rng.normal(size=SAMPLES) < level
        writer.add_eval(step, "knn_heldout", float(correct.mean()), 0.1, 20, 0.07, correct)
    writer.flush()


def make_study(root: Path, cured: bool = True, placebos_that_dip: int = 8) -> Path:
    """Write `runs/parent` and a study of two interventions: one as told, one without effect."""
    parent, study = root / "runs/parent", root / "branches/parent-at-dip"
    plant(parent, 1)
    rows = [("control", "control", "", "", BEGIN, 0, ONSET, 1)]
    for begin, events in ((BEGIN, placebos_that_dip), (90, 3)):
        rows += [
            (
                f"placebo-{i}-at-{begin}",
                "placebo",
                "",
                "",
                begin,
                i,
                ONSET if i < events else None,
                i,
            )
            for i in range(8)
        ]
    for family in ("moments", "kick"):
        rows += [
            (f"sham-{family}-{i}", "sham", f"{family} {i}", family, BEGIN, i, ONSET, 20 + i)
            for i in range(4)
        ]
    for name, family, dip in (
        ("reset", "moments", None if cured else ONSET),
        ("lr", "kick", ONSET),
    ):
        rows += [
            (f"{name}-{i}", "intervention", f"change {name}", family, BEGIN, i, dip, 30 + i)
            for i in range(6)
        ]
    plan = {
        "parent": {"folder": "runs/parent", "run": "0"},
        "event": {"kind": "dip", "onset": ONSET, "end": END, "bottom": 160, "layer": None},
        "horizon": HORIZON,
        "branches": [
            dict(
                zip(("folder", "kind", "change", "family", "begin", "replicate"), row, strict=False)
            )
            for row in rows
        ],
    }
    for name, *_, begin, _replicate, dip, seed in rows:
        plant(study / str(name), int(seed), int(begin), dip, last=HORIZON)
    (study / "branches.yaml").write_text(dump_yaml(plan))
    return study
