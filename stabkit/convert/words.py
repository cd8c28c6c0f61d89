"""Lines of text that say what a conversion did, or would do."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from stabkit.convert.mapping import ConversionPlan
from stabkit.convert.series import listed, shown
from stabkit.convert.write import Converted
from stabkit.printing import counted


def in_detail(runs: Sequence[Converted]) -> Iterator[str]:
    """Yield every series of each run and where it would go, for --dry-run."""
    shared = _notes_of_all(runs)
    for run in runs:
        yield f"{run.folder}: would be made ({run.format})"
        width = min(60, max((len(shown(source)) for source, _, _ in run.plan.went), default=0))
        for source, where, remark in run.plan.went:
            rest = f"  ({shown(remark, 200)})" if remark else ""
            yield f"  {shown(source):<{width}}  {where}{rest}"
        yield from _left_out(run.plan, shared)
    yield from shared


def in_short(source: Path, runs: Sequence[Converted]) -> Iterator[str]:
    """Yield where each run is, and what it holds."""
    shared = _notes_of_all(runs)
    for run in runs:
        yield f"{run.folder}: a run made from {source} ({run.format})"
        yield from _holds(run, shared)
    yield from shared


def of_log(source: Path, runs: Sequence[Converted]) -> Iterator[str]:
    """Yield what the runs of a log hold, those of equal content together."""
    shared = _notes_of_all(runs)
    alike: dict[tuple[str, ...], list[str]] = {}
    for run in runs:
        alike.setdefault(tuple(_holds(run, shared)), []).append(run.folder.name)
    for lines, names in alike.items():
        named = f", {counted(len(names), 'run')}: {listed(names, 4)}" if len(runs) > 1 else ""
        yield f"{source}: read as {runs[0].format}{named}"
        yield from lines
    yield from shared


def _notes_of_all(runs: Sequence[Converted]) -> list[str]:
    """Return the notes that all runs share, which are told once, after the runs."""
    first, *others = [list(_notes(run.plan)) for run in runs]
    return [note for note in first if all(note in notes for notes in others)]


def _holds(run: Converted, shared: Collection[str]) -> Iterator[str]:
    """Yield the tables made, what was left out and why, and the notes that are not `shared`."""
    plan = run.plan
    by_signal: dict[str, list[str]] = defaultdict(list)
    for layer in plan.layers.names:
        for signal, of in plan.layers.series:
            if of == layer:
                by_signal[signal].append(layer)
    for signal, layers in by_signal.items():
        number = counted(len(layers), "layer")
        yield f"  layers    {signal} of {number}, first to last: {listed(layers)}"
    for source_name, where, remark in plan.went:
        if where.startswith("evals"):
            yield f"  evals     {where.removeprefix('evals: ')} from {shown(source_name)}, {remark}"
    if plan.scalars:
        yield f"  scalars   {len(plan.scalars)} series: {listed(list(plan.scalars))}"
    yield from _left_out(plan, shared)


def _left_out(plan: ConversionPlan, shared: Collection[str]) -> Iterator[str]:
    by_reason: dict[str, list[str]] = defaultdict(list)
    for name, why in plan.left_out.items():
        by_reason[why].append(name)
    for why, names in by_reason.items():
        yield f"  left out  {listed(names)}: {shown(why, 200)}"
    yield from (note for note in _notes(plan) if note not in shared)


def _notes(plan: ConversionPlan) -> Iterator[str]:
    """Yield how the log was read, and how dips could be found or tested."""
    for note in plan.notes:
        yield f"  note      {shown(note, 400)}"
    if not plan.evals:
        yield (
            "  note      no accuracy of an evaluation by its name: losses and gradient norms are "
            "judged. For one\n            "
            "under another name: stabkit convert with --map NAME=eval:NAME"
        )
    elif len(plan.evals) > 1:
        yield (
            "  note      one of the accuracies is judged: kNN before others, held-out before "
            "training, then by name;\n            another by `stabkit analyze --metric NAME`"
        )
    evals = [evaluation for several in plan.evals.values() for evaluation in several]
    if any(not evaluation.n and not evaluation.score for evaluation in evals):
        yield (
            "  note      on how many samples is unknown, so a dip has no p-value: stabkit convert "
            "with\n            --n NUMBER, and --chance"
        )
