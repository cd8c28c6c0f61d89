"""The report as one HTML page: nothing is loaded, and the browser is told to load nothing."""

import base64
import hashlib
from pathlib import Path

import jinja2
from markupsafe import Markup

import stabkit
from stabkit.analyze.remedies import NO_HELP, SIGNS, SOURCES
from stabkit.analyze.report import Report

FOLDER = Path(__file__).parent


def render(report: Report) -> str:
    """The page's HTML; every name and setting in it is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (FOLDER / "report.css").read_text(encoding="utf-8")
    return environment.get_template("report.html.j2").render(
        report=report,
        style=Markup(style),
        policy=_policy(style),
        signs=SIGNS,
        sources=SOURCES,
        no_help=NO_HELP,
        version=stabkit.__version__,
    )


def _policy(style: str) -> str:
    """Only pictures inside the page and the very style that is in it."""
    return "; ".join(
        [
            "default-src 'none'",
            "img-src data:",
            f"style-src '{_hash(style)}'",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
