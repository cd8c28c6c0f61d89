"""Make the report's section "What would have prevented it" from the studies of its runs."""

import warnings
from collections.abc import Iterator
from pathlib import Path

from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.report.figures import Table
from stabkit.analyze.report.pictures import picture
from stabkit.analyze.report.prevention import Prevention
from stabkit.branch.judge.attribution import judge_branches
from stabkit.branch.judge.branch_figures import branches_figure, committor_figure, curve_table
from stabkit.branch.judge.branch_table import PLAN, Planned, measured_table, read_plan

BESIDE = "branches"  # the folder of studies


def preventions(runs: Diagnoses) -> list[Prevention]:
    """Return a part of the section for each study of one of these runs, by name.

    Studies lie in `branches/`, in the folder of the runs, beside it, or in the present folder; the
    folder may be a study itself. A study that cannot be read is left out with a warning.
    """
    paths = {run.path.resolve() for run in runs}
    found = []
    for study in _studies(runs.path):
        try:
            plan = read_plan(study)
            if plan.parent.path.resolve() in paths or study.resolve() == runs.path.resolve():
                found.append(_prevention(plan))
        except (OSError, ValueError) as error:
            warnings.warn(f"{study}: left out of the report: {error}", stacklevel=2)
    return found


def _studies(folder: Path) -> Iterator[Path]:
    places = [folder / BESIDE, folder.parent / BESIDE, Path(BESIDE)]
    files = [folder / PLAN, *(file for place in places for file in place.glob(f"*/{PLAN}"))]
    there = {file.parent.resolve(): file.parent for file in files if file.is_file()}
    yield from (there[path] for path in sorted(there))


def _prevention(plan: Planned) -> Prevention:
    judged, event = judge_branches(measured_table(plan)), plan.event
    curves = curve_table(plan)
    about = f"the {event.kind} at steps {event.onset} to {event.end} of {plan.parent.name}"
    lines = tuple(judged.lines())
    pictures = []
    if len(curves):
        alt = f"Accuracy of branches around {about}: control, placebos, each intervention."
        pictures.append(picture(branches_figure(curves, plan, judged), alt))
    if judged.committor["begin"].nunique() > 1:
        alt = f"Share of placebos that repeat {about}, by begin step. {lines[0]}"
        pictures.append(picture(committor_figure(judged, plan), alt))
    head, *rows = judged.cells()
    table = Table(f"What was tried against {about}", head, tuple(rows)) if rows else None
    name = about[0].upper() + about[1:]
    return Prevention(name, judged.answer(), lines, table, tuple(pictures))
