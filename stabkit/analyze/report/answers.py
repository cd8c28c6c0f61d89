"""Answer the three questions of the report in a line each: unstable, where, what prevents it."""

from collections.abc import Sequence
from dataclasses import dataclass

from stabkit.analyze.cells import group_cells, run_label
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.plots.clock import warmup_end
from stabkit.analyze.report.headline import Verdict, isolated
from stabkit.analyze.report.incident import Incident
from stabkit.analyze.report.remedy_effects import Advice, Trial
from stabkit.analyze.report.signs import IN_WORDS, events_of
from stabkit.analyze.text import layers_called
from stabkit.printing import counted

TOLD = 2  # remedies in the third answer


@dataclass(frozen=True)
class Answer:
    question: str
    text: str


def answers(
    runs: Diagnoses,
    verdict: Verdict,
    incidents: Sequence[Incident],
    worst: str,
    advice: Sequence[Advice],
) -> tuple[Answer, ...]:
    """Return question and answer. `worst` names the worst run; `incidents` are those of all."""
    return (
        Answer("Unstable?", verdict.lines[0] if verdict.lines else f"{verdict.headline}."),
        Answer("Where did it start?", _where(runs, verdict, incidents, worst)),
        Answer("What would have prevented it?", _prevented(verdict, advice)),
    )


def _where(runs: Diagnoses, verdict: Verdict, incidents: Sequence[Incident], worst: str) -> str:
    of_run = events_of(incidents, worst)
    if not of_run:
        return "Not known." if verdict.mood == "unknown" else "No event was found."
    first = of_run[0]
    text = f"At step {first.onset:,}, with {_a(first)}{_in_layers(first)}{_warmup(first)}"
    if not first.began_in:
        burst = next((one for one in of_run if one.began_in and one.kind == "burst"), None)
        if burst:
            text += f"; gradients burst first at step {burst.onset:,}{_in_layers(burst)}"
    if len(runs) == 1:
        return f"{text}."
    label = next(
        run_label(cell, run) for cell in group_cells(runs) for run in cell.runs if run.name == worst
    )
    return f"{text} (the worst run: {isolated(label)})."


def _a(one: Incident) -> str:
    return IN_WORDS.get(one.kind, f"a {one.kind}")


def _in_layers(one: Incident) -> str:
    names = one.began_in.split(", ")
    more = f" and {counted(len(names) - 1, 'more layer')}" if len(names) > 1 else ""
    return f" in {layers_called(names[0])}{more}" if one.began_in else ""


def _warmup(one: Incident) -> str:
    """Say where the onset lies relative to the warm-up, if it is known and near."""
    end = warmup_end(one.run)
    if not end or one.onset > 2 * end:
        return ""
    where = "inside" if one.onset < end else "soon after"
    return f", {where} the warm-up of {end:,.0f} steps"


def _prevented(verdict: Verdict, advice: Sequence[Advice]) -> str:
    """Name the remedies that these runs themselves measure to help, or else the first to try."""
    if verdict.mood in ("good", "unknown"):
        return "Nothing to prevent." if verdict.mood == "good" else "Not known."
    helped = sorted(
        ((one, one.trial) for one in advice if one.trial and _helped(one.trial)),
        key=lambda pair: (pair[1].verdict != "holds", -pair[1].claim.effect),
    )
    if helped:
        told = "; ".join(f"{one.remedy.name}: {trial.short()}" for one, trial in helped[:TOLD])
        sure = "" if helped[0][1].verdict == "holds" else " So few pairs do not decide it."
        return f"Measured here: {told}.{sure}"
    first = next((one for one in advice if one.score and one.why_not == ""), None)
    if first is None:
        return "Not known: these runs do not measure it."
    return f"Not measured here. The first to try: {first.remedy.name}."


def _helped(trial: Trial) -> bool:
    fewer = sum(pair.unstable_with - pair.unstable_without for pair in trial.pairs)
    return trial.verdict != "fails" and trial.claim.effect > 0 and fewer <= 0
