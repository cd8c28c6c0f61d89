"""What a replay shows, in sentences: the tensor, the samples, the second moment, the attention."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from stabkit.detect import find_spikes, find_stale_moments
from stabkit.printing import first_of
from stabkit.replay.plan import ReplayPlan
from stabkit.store.reader import StoredRun

SATURATED = 0.1  # share of ln S: a head that sees two or three of the tokens
SAMPLES = 3  # named


class Found(NamedTuple):
    """The tables of a replay, and what stood out in them."""

    run: StoredRun
    tensors: pd.DataFrame  # step, tensor, grad_norm; without those that are only rounding
    samples: pd.DataFrame  # step, sample, loss
    first: pd.DataFrame  # tensor, onset, ratio: tensors that stood out, the first in front
    at: int  # the step whose samples are named


def look(folder: Path, plan: ReplayPlan) -> Found:
    """Read a replay's tables, and find the tensors that stood out from half of the lead on."""
    run = StoredRun(folder)
    tensors = pd.read_parquet(folder / "tensors.parquet")
    tensors = tensors[~tensors["tensor"].isin(_null_parameters(run))]
    rows = []
    for order, (name, part) in enumerate(tensors.groupby("tensor", sort=False)):
        spikes = find_spikes(part["step"].to_numpy(), part["grad_norm"].to_numpy())
        spikes = spikes[spikes["end"] >= (plan.start + plan.onset) // 2]
        if len(spikes):
            rows.append((name, int(spikes["onset"].iloc[0]), spikes["ratio"].iloc[0], order))
    first = pd.DataFrame(rows, columns=["tensor", "onset", "ratio", "order"])
    first = first.sort_values(["onset", "order"], ignore_index=True)
    at = int(first["onset"].iloc[0]) if len(first) else plan.onset
    samples = pd.read_parquet(folder / "samples.parquet")
    return Found(run, tensors, samples, first.drop(columns="order"), min(at, plan.end - 1))


def answers(found: Found, plan: ReplayPlan) -> list[str]:
    """Return a line for each question, in the order of the figure's panels."""
    return [
        _tensor(found, plan),
        _samples(found),
        _second_moment(found, plan),
        _attention(found),
    ]


def _tensor(found: Found, plan: ReplayPlan) -> str:
    if not len(found.first):
        return f"tensors: none stood out in the steps {plan.start} to {plan.end - 1}"
    step = found.first["onset"].iloc[0]
    together = found.first[found.first["onset"] == step]
    words = [f"{row.tensor} ({row.ratio:.1f} times)" for row in together.itertuples()]
    after = len(found.first) - len(together)
    return f"tensors: first, at step {step}, {first_of(words, 3)}; {after} others later"


def _samples(found: Found) -> str:
    batch = found.samples[found.samples["step"] == found.at]
    if not len(batch):
        return "samples: this method has no loss of a single sample"
    top = batch.nlargest(SAMPLES, "loss")
    words = ", ".join(f"{row.sample} ({row.loss:.3g})" for row in top.itertuples())
    before = found.samples[found.samples["step"] < found.at]
    bar = before["loss"].quantile(0.999) if len(before) else np.inf
    unusual = int((batch["loss"] > bar).sum())
    usual = f"{unusual} above what 999 of 1,000 had before" if len(before) else "no step before"
    return (
        f"samples of step {found.at}: the largest losses {words}; median "
        f"{batch['loss'].median():.3g}; {usual}"
    )


def _second_moment(found: Found, plan: ReplayPlan) -> str:
    signals = found.run.signals()
    if "adam_rms" not in signals or not signals["adam_rms"].notna().any():
        return "second moment: the optimizer has none"
    stale = []
    for layer, part in signals.groupby("layer", sort=False, observed=True):
        events = find_stale_moments(
            part["step"].to_numpy(), part["adam_rms"].to_numpy(), plan.config.optim.beta2
        )
        stale += [(int(row.onset), str(layer)) for row in events.itertuples()]
    if not stale:
        top = signals.loc[signals["adam_rms"].idxmax()]
        return (
            f"second moment: never stale; the largest adam_rms is {top['adam_rms']:.3g}, in "
            f"{top['layer']} at step {top['step']}"
        )
    words = [f"{layer} at step {step}" for step, layer in sorted(stale)]
    return f"second moment: stale in {first_of(words, 3)}"


def _attention(found: Found) -> str:
    signals = found.run.signals()
    if "attention_entropy" not in signals or not signals["attention_entropy"].notna().any():
        return "attention: the model has none"
    low = signals.loc[signals["attention_entropy"].idxmin()]
    word = "saturated" if low["attention_entropy"] < SATURATED else "not saturated"
    return (
        f"attention: {word}; the lowest entropy of a head is {low['attention_entropy']:.2f} of its "
        f"maximum, in {low['layer']} at step {low['step']}"
    )


def _null_parameters(run: StoredRun) -> list[str]:
    """Return the tensors whose gradients the Monitor found to be nothing but rounding."""
    reasons = [e["reason"] for e in run.log_entries() if e.get("kind") == "null_parameters"]
    return [name for reason in reasons for name in reason.rpartition(": ")[2].split(", ")]
