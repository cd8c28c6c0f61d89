"""Say in sentences what was found in gradients: bursts, swells, growth, layers that lost theirs."""

from collections.abc import Iterator

import pandas as pd

from stabkit.analyze.order import lead_words, onsets_from_patches, patch_projection
from stabkit.analyze.sentence_parts import NAMED, RunOfRow, largest, named
from stabkit.analyze.text import layers_called, listed, times
from stabkit.printing import counted


def bursts_in_words(table: pd.DataFrame, of: RunOfRow) -> Iterator[str]:
    watched = any(run.judged.layers or run.judged.norms for run in of.values())
    if not watched:
        return
    if not table["bursts"].any():
        if table[["swells", "growths"]].any(axis=None):
            return  # `swells_in_words` or `growths_in_words` says what the verdict `bursts` is of
        layers = any(run.judged.layers for run in of.values())
        yield "No layer's gradient norm spiked." if layers else "No gradient norm spiked."
        return
    found = counted(int(table["bursts"].sum()), "gradient burst")
    text = f"{found} in {counted(int((table['bursts'] > 0).sum()), 'run')}"
    if any(map(patch_projection, of.values())):
        led = lead_words(onsets_from_patches(of.values()))
        text += f"; {led}." if led else ", none with the patch projection."
        yield text + _clear(table)
        return
    bursting = table[table["bursts"] > 0]
    where, _, burst = largest(bursting, of, lambda run: run.gradients.bursts, "ratio")
    yield (
        f"{text}. The largest ({named(where)}): {times(burst['ratio'])} what was expected; it "
        f"began at step {burst['onset']:,}\nin {layers_called(burst['first'])}." + _clear(table)
    )


def _clear(table: pd.DataFrame) -> str:
    """Say how many bursts do not count for a verdict; empty if all count."""
    all_bursts, clear = int(table["bursts"].sum()), int(table["clear_bursts"].sum())
    if clear == all_bursts:
        return ""
    if not clear:
        which = "It does not stand" if all_bursts == 1 else "None of them stands"
        return f"\n{which} out from the values around, so no verdict rests on it."
    stand = "stands" if clear == 1 else "stand"
    return f"\n{clear} of them {stand} out from the values around; no verdict rests on the others."


def swells_in_words(table: pd.DataFrame, of: RunOfRow) -> Iterator[str]:
    swelling = table[table["swells"] > 0]
    if swelling.empty:
        return
    where, _, swell = largest(swelling, of, lambda run: run.gradients.swells, "ratio")
    number = counted(int(swelling["swells"].sum()), "gradient swell")
    yield (
        f"{number} in {counted(len(swelling), 'run')}. The largest ({named(where)}): "
        f"{swell['ratio']:.3g} times the level before,\n"
        f"from step {swell['onset']:,} to step {swell['end']:,}, first in "
        f"{layers_called(swell['first'])}.{_rests_on(swelling, 'swells', 'growths')}"
    )


def growths_in_words(table: pd.DataFrame, of: RunOfRow) -> Iterator[str]:
    growing = table[table["growths"] > 0]
    if growing.empty:
        return
    where, _, growth = largest(growing, of, lambda run: run.gradients.growths, "ratio")
    yield (
        f"Gradient norms grew for long in {counted(len(growing), 'run')}. The most "
        f"({named(where)}): to {growth['ratio']:.3g} times their lowest level,\n"
        f"from step {growth['onset']:,} to step {growth['end']:,}, first in "
        f"{layers_called(growth['first'])}.{_rests_on(growing, 'growth', 'swells')}"
    )


def _rests_on(table: pd.DataFrame, what: str, other: str) -> str:
    """Say where a verdict rests on `what` alone: without bursts that count and the `other`."""
    alone = (table["verdict"] == "bursts") & (table["clear_bursts"] == 0) & (table[other] == 0)
    if not alone.any():
        return ""
    return f" The verdict `bursts` of {counted(int(alone.sum()), 'run')} rests on {what}."


def cut_off_in_words(table: pd.DataFrame, of: RunOfRow) -> Iterator[str]:
    """Name the layers that lost their gradient in mid-training, of the first such run."""
    lost = {row: run.gradients.layers_without_gradient for row, run in of.items()}
    found = [row for row, layers in lost.items() if layers]
    if not found:
        return
    gone = lost[found[0]]
    names, begin = layers_called(listed([*gone][:NAMED])), min(gone.values())
    more = f" and {counted(len(gone) - NAMED, 'more layer')}" if len(gone) > NAMED else ""
    others = f" So in {counted(len(found) - 1, 'more run')}." if len(found) > 1 else ""
    yield (
        f"No gradient from step {begin:,} to the end ({named(table.loc[found[0]])}) in\n"
        f"{names}{more}: frozen, or cut off by mistake?{others}"
    )
