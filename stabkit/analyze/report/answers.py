"""Answer the three questions of the report in a line each: unstable, where, what prevents it."""

from collections.abc import Sequence
from dataclasses import dataclass

from stabkit.analyze.cells import group_cells, run_label
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.notes import rate_jumps
from stabkit.analyze.plots.clock import warmup_end
from stabkit.analyze.report.advice import Advice
from stabkit.analyze.report.headline import Verdict, isolated
from stabkit.analyze.report.incident import TOLD_KINDS, Incident
from stabkit.analyze.report.remedy_trials import Trial
from stabkit.analyze.report.signs import called, events_of, when
from stabkit.analyze.text import layers_called
from stabkit.printing import counted

TOLD = 2  # events in the first answer
BEFORE = 50  # steps before an event, in which a jump of the learning rate is told
# kinds of event that make a run unstable
DECISIVE = ("nonfinite", "collapse", "departure", "dip", "drift", "loss_spike", "unrest")


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
    nothing: str,
) -> tuple[Answer, ...]:
    """Return question and answer. `worst` names the worst run; `incidents` are those of all.

    `nothing` says why there is no event, where there is none.
    """
    return (
        Answer("Unstable?", _unstable(runs, verdict, events_of(incidents, worst))),
        Answer("Where did it start?", _where(runs, verdict, incidents, worst, nothing)),
        Answer("What would have prevented it?", _prevented(verdict, advice)),
    )


def _unstable(runs: Diagnoses, verdict: Verdict, of_worst: Sequence[Incident]) -> str:
    """Say yes, with the worst events of a single run, or say what was found."""
    line = verdict.lines[0] if verdict.lines else f"{verdict.headline}."
    if verdict.mood != "bad":
        return line
    if len(runs) > 1:
        return f"Yes: {line}"
    decisive = [one for one in of_worst if one.kind in DECISIVE]
    told = sorted(decisive, key=lambda one: TOLD_KINDS.index(one.kind))[:TOLD]
    return " ".join(["Yes.", *(f"{one.headline}." for one in told), line]).strip()


def _where(
    runs: Diagnoses, verdict: Verdict, incidents: Sequence[Incident], worst: str, nothing: str
) -> str:
    of_run = events_of(incidents, worst)
    if not of_run:
        return "Not known." if verdict.mood == "unknown" else nothing
    first = of_run[0]
    begun = when(first)
    text = f"{begun[0].upper()}{begun[1:]}, with {called(first)}"
    text += f"{_in_layers(first)}{_warmup(first)}"
    fall = next((one for one in of_run if one.shows is not None), first)
    if fall is not first:
        text += f"; accuracy fell {when(fall)}"
    if not first.began_in:
        burst = next((one for one in of_run if one.began_in and one.kind == "burst"), None)
        if burst:
            text += f"; gradients burst first at step {burst.onset:,}{_in_layers(burst)}"
    text += _jump(first)
    if len(runs) == 1:
        return f"{text}."
    label = next(
        run_label(cell, run) for cell in group_cells(runs) for run in cell.runs if run.name == worst
    )
    return f"{text} (worst run: {isolated(label)})."


def _in_layers(one: Incident) -> str:
    names = one.began_in.split(", ")
    more = f" and {counted(len(names) - 1, 'more layer')}" if len(names) > 1 else ""
    return f" in {layers_called(names[0])}{more}" if one.began_in else ""


def _warmup(one: Incident) -> str:
    """Say where the onset lies relative to the warm-up, if it is known and near."""
    end = warmup_end(one.run)
    if one.kind == "stuck":
        return ""  # it is stuck from the first step on, whatever the warm-up
    if not end or one.onset > 2 * end:
        return ""
    where = "inside" if one.onset < end else "soon after"
    return f", {where} the warm-up of {end:,.0f} steps"


def _jump(one: Incident) -> str:
    """Name a jump of the learning rate, upwards, just before the event or inside it."""
    for step, before, after in rate_jumps(one.run.tables):
        if before < after and one.onset - BEFORE <= step <= one.end:
            return f". The learning rate jumped from {before:.3g} to {after:.3g} at step {step:,}"
    return ""


def _prevented(verdict: Verdict, advice: Sequence[Advice]) -> str:
    """Name a remedy that these runs decide to help, or the most promising, or the first to try.

    One of several remedies without any effect often has the better runs. So what is not decisive is
    not called measured.
    """
    if verdict.mood in ("good", "unknown"):
        return "Nothing to prevent." if verdict.mood == "good" else "Not known."
    helped = [(one, one.trial) for one in advice if one.trial and _helped(one.trial)]
    decided = [pair for pair in helped if pair[1].verdict == "holds" and _fewer(pair[1]) > 0]
    if decided:
        one, trial = decided[0]
        return f"Measured here: {one.remedy.name}: {trial.short()}."
    if helped:
        one, trial = max(helped, key=lambda pair: (_fewer(pair[1]) > 0, pair[1].claim.effect))
        return (
            f"Not known. The most promising here, which may be chance: {one.remedy.name}: "
            f"{trial.short()}."
        )
    first = next((one for one in advice if one.score and one.why_not == ""), None)
    if first is None:
        return "Not known: these runs do not measure it."
    return f"Not measured here. The first to try: {first.remedy.name}."


def _helped(trial: Trial) -> bool:
    return trial.verdict != "fails" and trial.claim.effect > 0 and _fewer(trial) >= 0


def _fewer(trial: Trial) -> int:
    """Return how many fewer runs were unstable with the remedy."""
    return sum(pair.unstable_without - pair.unstable_with for pair in trial.pairs)
