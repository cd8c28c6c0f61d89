"""Draw the figures of the report: which ones apply, in which order, in how many pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from stabkit.analyze.cells import Cell, cell_label, group_cells, run_label
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.does_not_apply import DoesNotApplyError
from stabkit.analyze.plots import PLOTS
from stabkit.analyze.plots.accuracy_table import NOTE, table_cells
from stabkit.analyze.plots.grad_norms import MAX_CELLS
from stabkit.analyze.plots.many import ROWS, TooManyError, joined_notes, without_unfinished
from stabkit.analyze.plots.note_lines import draw_notes
from stabkit.analyze.plots.onset_order import too_few
from stabkit.analyze.report.headline import Verdict
from stabkit.analyze.report.pictures import Picture, picture
from stabkit.printing import counted
from stabkit.store.schema import METRIC

HALF = 760  # CSS pixels: a wider figure is not set beside another
TALL, PAGE = 700, 1056  # CSS pixels: a figure that takes more room than this is folded


@dataclass(frozen=True)
class Table:
    """A table of texts. The first text of a row names it."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Shown:
    """A figure, its title, and its name on the command line.

    It has a picture for each panel, so that a narrow page can stack them, or a table instead.
    """

    title: str
    name: str
    about: str
    pictures: tuple[Picture, ...]
    table: Table | None = None

    @property
    def wide(self) -> bool:
        """Whether it takes the whole width of the page."""
        return sum(one.width for one in self.pictures) > HALF

    @property
    def folded(self) -> bool:
        area = sum(one.width * one.height for one in self.pictures)
        return PLOTS[self.name].folded or area > TALL * PAGE


def draw_figures(runs: Diagnoses, verdict: Verdict, worst: str) -> tuple[list[Shown], list[str]]:
    """Draw all figures that apply to these runs; say which ones the runs are too many for.

    The figure with a panel for each signal shows the `worst` run alone.
    """
    found: list[Shown] = []
    undrawn: list[str] = []
    places = {name: plot.place for name, plot in PLOTS.items() if plot.place is not None}
    for name in sorted(places, key=places.__getitem__):
        if name == "loss" and not _loss_tells(runs):
            continue
        try:
            shown = _shown(name, runs, verdict, worst, drawn=bool(found))
        except TooManyError as error:
            undrawn.append(f"{name}: {error}")
        except DoesNotApplyError:
            continue
        else:
            found += [shown] if shown else []
    return found, undrawn


def _shown(
    name: str, runs: Diagnoses, verdict: Verdict, worst: str, *, drawn: bool
) -> Shown | None:
    """Draw one figure; None if it would show nothing new. Raises DoesNotApplyError."""
    plot, cells, shown = PLOTS[name], group_cells(runs), runs
    about, title = plot.about, plot.title
    if name == "signals" and len(runs) > 1:
        about = f"{about}; of the worst run"
        shown = replace(runs, items=tuple(run for run in runs if run.name == worst))
    if plot.of_cells and len(cells) > MAX_CELLS:
        about = f"{about}; the first {MAX_CELLS} of {len(cells):,} cells"
    table = plot.table(shown)
    if len(shown) < len(runs):  # named as elsewhere on the page, not by its folder
        table = table.assign(run=_label_of(cells, worst))
    if table.empty or (name == "onset-order" and too_few(table)):
        return None
    if name == "signals" and drawn and table["signal"].nunique() == 1:
        return None  # the accuracy or loss that has a figure of its own
    if name == "knn" and (table["metric"] != METRIC).any():
        title = "Accuracy"
    if name == "grad-norms" and not any(len(run.gradients.layers) for run in shown):
        title, about = (
            "Gradient norm of the whole model",
            "gradient norm, the largest bursts zoomed",
        )
    about = about[0].upper() + about[1:]
    if name == "accuracy-table" and table["cell"].nunique() <= ROWS:
        head, rows = table_cells(table)
        texts = tuple(tuple(text for text, _ in row) for row in rows)
        note = joined_notes(NOTE.partition(";")[0], without_unfinished(table))
        return Shown(title, name, about, (), Table(note, tuple(head), texts))
    named = group_cells(shown)
    names = "; ".join(cell_label(cell) for cell in named[:12])
    alt = f"{about}. {counted(len(shown), 'run')}: {names}. {verdict.headline}."
    figures = plot.apart(table) if plot.apart else [plot.figure(table)]
    pictures = []
    for number, figure in enumerate(figures, start=1):
        panel = f" Panel {number} of {len(figures)}." if len(figures) > 1 else ""
        pictures.append(picture(draw_notes(figure, shown), alt + panel))
    return Shown(title, name, about, tuple(pictures))


def _label_of(cells: Sequence[Cell], name: str) -> str:
    return next(run_label(cell, run) for cell in cells for run in cell.runs if run.name == name)


def _loss_tells(runs: Diagnoses) -> bool:
    """Return whether the loss shows what accuracies do not: an event, or a run without them."""
    return any(
        not run.judged.evals
        or len(run.loss.spikes)
        or len(run.loss.departures)
        or len(run.stuck)
        or (run.unrest["series"] != run.accuracy.metric).any()
        for run in runs
    )
