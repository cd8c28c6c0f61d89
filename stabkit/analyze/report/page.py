"""Render the report as one HTML page that loads nothing and tells the browser to load nothing."""

import base64
import hashlib
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jinja2
from markupsafe import Markup

from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.report.contents import LISTED, OPEN_CARDS, OPEN_ROWS, Report, make_report
from stabkit.analyze.report.interactive import ABOUT, Chart, charts, plotly_script
from stabkit.analyze.report.prevention import Prevention
from stabkit.analyze.report.remedies import NO_HELP
from stabkit.analyze.report.remedy import SIGNS
from stabkit.analyze.report.sources import SOURCES
from stabkit.printing import counted, lines
from stabkit.rundir import whole
from stabkit.version import __version__

FOLDER = Path(__file__).parent
READABLE = 480  # CSS pixels: a wider picture is scrolled on a narrow page, not made smaller
MOODS = {  # of a verdict: the color of its word
    "diverged": "bad", "collapsed": "bad", "unstable": "bad", "stable": "good",
    "unknown": "unknown",
}  # fmt: skip


def write_report(
    runs: Diagnoses, out: Path, interactive: bool = False, preventions: Sequence[Prevention] = ()
) -> None:
    """Write one HTML file that holds all it needs.

    Raises ValueError if a run is unreadable, and OSError, before it draws anything, if the file
    cannot be written.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole(out) as file:
        page = render(make_report(runs), charts(runs) if interactive else (), preventions)
        # bytes in a folder's name that are no text are shown as escapes
        file.write(page.encode("utf-8", "backslashreplace"))


def render(
    report: Report, zoomable: Sequence[Chart] = (), preventions: Sequence[Prevention] = ()
) -> str:
    """Return the HTML of the page. Every name and setting in it is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    if preventions:
        *others, last = report.answers
        tried = " ".join(f"{one.event}: {one.answer}" for one in preventions)
        report = replace(
            report, answers=(*others, replace(last, text=f"Tried in branches. {tried}"))
        )
    style = (FOLDER / "report.css").read_text(encoding="utf-8")
    scripts = [(FOLDER / "scroll.js").read_text(encoding="utf-8")]
    if zoomable:
        scripts += [plotly_script(), (FOLDER / "report.js").read_text(encoding="utf-8")]
    return environment.get_template("report.html.j2").render(
        report=report,
        preventions=preventions,
        listed=LISTED,
        cards_open=OPEN_CARDS,
        rows_open=OPEN_ROWS,
        readable=READABLE,
        charts=_by_figure(zoomable),
        chart_words=ABOUT,
        counted=counted,
        style=Markup(style),
        scripts=[Markup(script) for script in scripts],
        policy=_policy(style, scripts, draws=bool(zoomable)),
        signs=SIGNS,
        sources=SOURCES,
        moods=MOODS,
        no_help=NO_HELP,
        version=__version__,
        folder=shlex.quote(report.folder),
    )


def _by_figure(zoomable: Sequence[Chart]) -> dict[str, list[tuple[int, Chart, Markup]]]:
    """Return the charts of each figure with their numbers on the page, and their data."""
    found: dict[str, list[tuple[int, Chart, Markup]]] = {}
    for number, chart in enumerate(zoomable):
        found.setdefault(chart.name, []).append((number, chart, _inside_script(chart.data)))
    return found


def _shown(value: object) -> object:
    """Show characters that hide text or reorder lines as escapes. Markup is ours and stays."""
    return lines(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _policy(style: str, scripts: Sequence[str], draws: bool) -> str:
    """Allow only pictures inside the page, and exactly the style and scripts that are in it."""
    rules = {"default-src": "'none'", "img-src": "data:", "style-src": _hash(style)}
    rules["script-src"] = " ".join(map(_hash, scripts))
    if draws:
        # plotly sets styles while it draws. Nothing can be loaded, so a hostile style could only
        # change how the page looks.
        rules["style-src"] = "'unsafe-inline'"
    rules |= {"base-uri": "'none'", "form-action": "'none'"}
    return "; ".join(f"{name} {sources}" for name, sources in rules.items())


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _inside_script(text: str) -> Markup:
    """Escape JSON so that no name in it can end the element that holds it."""
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
