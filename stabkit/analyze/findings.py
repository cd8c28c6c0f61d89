"""Describe in sentences what a handful of runs says beyond the row of each run."""

from stabkit.analyze.across_runs import (
    between_seeds,
    bursts_and_dips,
    onsets,
    order_test,
    told_dips,
)
from stabkit.analyze.cells import group_cells, label
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.does_not_apply import DoesNotApplyError
from stabkit.analyze.learning_rate import LR
from stabkit.analyze.order import FEWEST, LEAD, each_burst, herald_words, order_words
from stabkit.analyze.scores import run_scores
from stabkit.analyze.sensitivity import lr_sensitivity
from stabkit.detect import event_association
from stabkit.printing import counted


def findings(runs: Diagnoses) -> list[str]:
    """Return the sentences that apply.

    They tell how dips ended, the order of layers, bursts before dips, and learning-rate
    sensitivity.
    """
    sentences = (_severities(runs), _order(runs), _heralds(runs), _sensitivity(runs))
    return [sentence for sentence in sentences if sentence]


def _severities(runs: Diagnoses) -> str:
    found: dict[str, int] = {}
    for cell in group_cells(runs):
        between = between_seeds(cell.runs)
        for run in cell.runs:
            for severity in told_dips(run, between)["severity"]:
                found[severity] = found.get(severity, 0) + 1
    if not found:
        return ""
    known = {
        "benign": "recovered in full",
        "lingering": "recovered only in part",
        "restart": "came back as another solution (answers agree as little as between seeds)",
        "terminal": "lost nearly all accuracy",
        "censored": "had not recovered when the run ended",
    }
    counts = [f"{found[name]} {words}" for name, words in known.items() if name in found]
    dips = sum(found.values())
    return f"How the {'dip' if dips == 1 else f'{dips} dips'} ended: {', '.join(counts)}."


def _order(runs: Diagnoses) -> str:
    test = order_test(runs)
    if test.events < FEWEST:
        return each_burst(onsets(runs))
    return f"Bursts of several layers: {test.events}. {order_words(test)}"


def _heralds(runs: Diagnoses) -> str:
    return herald_words(event_association(bursts_and_dips(runs), LEAD))


def _sensitivity(runs: Diagnoses) -> str:
    ended, others = runs.that_finished()
    cells = group_cells(ended)
    if LR not in (cells[0].settings if cells else {}):
        return ""
    arms = [key for key in cells[0].settings if key != LR]
    try:
        table = lr_sensitivity(run_scores(ended), arms)
    except DoesNotApplyError:  # an arm has only one rate
        return ""
    parts = [
        f"{row['sensitivity']:.1f}"
        + (f" ({', '.join(label(key, row[key]) for key in arms)})" if arms else "")
        for row in table.to_dict("records")
    ]
    left_out = f" Left out: {counted(others, 'unfinished run')}." if others else ""
    head = (
        "What a poorly chosen learning rate costs (mean over the rates, points below the best;\n"
        "a run that ends below its untrained accuracy counts as untrained):"
    )
    return f"{head}\n{'; '.join(parts)}.{left_out}"
