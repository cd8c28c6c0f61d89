"""Write the page of results: what each part measured, on what, and by which command."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.gpu.measurements import read

OPENING, CLOSING = "<!-- results -->", "<!-- /results -->"


def write_page(file: Path, results: Path, parts: Iterable[str]) -> None:
    """Fill in the tables between the page's markers. Create the page if it does not exist."""
    found = {part: content for part in parts if (content := read(results / f"{part}.json"))}
    text = file.read_text() if file.exists() else f"# Results\n\n{OPENING}\n{CLOSING}\n"
    before, rest = text.split(OPENING)
    body = "\n\n".join(section(part, content) for part, content in found.items())
    after = rest.split(CLOSING)[1]
    file.write_text(f"{before}{OPENING}\n{body or 'Nothing is measured yet.'}\n{CLOSING}{after}")


def section(part: str, content: dict[str, Any]) -> str:
    columns, measurements = content["columns"], content["measurements"]
    lines = [f"### {part}", "", told(content), "", row(columns), "| --- " * len(columns) + "|"]
    notes: list[str] = []
    for measurement in measurements.values():
        lines += [row(line + [""] * (len(columns) - len(line))) for line in measurement["lines"]]
        notes += measurement["notes"]
    for note in notes:
        lines += ["", note]
    return "\n".join(lines)


def row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def told(content: dict[str, Any]) -> str:
    """Return the command and its circumstances as a sentence."""
    facts = content["circumstances"]
    versions = ", ".join(f"{name} {v}" for name, v in facts["versions"].items() if v)
    where = facts["device"]
    if facts["driver"]:
        where += f" ({facts['memory_gib']} GiB, driver {facts['driver']}, CUDA {facts['cuda']})"
    code = f"sources {facts['sources']}" + (
        f", commit {facts['commit']}" if facts["commit"] else ""
    )
    state = "" if content["complete"] else " **Not complete.**"
    quick = " A rehearsal: the figures mean nothing." if facts["quick"] else ""
    return (
        f"`{content['command']}`: {where}, {facts['cores']} CPU cores, Python {facts['python']}, "
        f"{versions}; {code}; {content['written']} UTC.{state}{quick}"
    )
