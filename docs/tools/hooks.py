"""What mkdocs needs beside the pages in docs/: pages that lie elsewhere, and one for each study.

The pages of docs/ are written for readers of the repository too, so their links lead to files of
the repository. Here those links become links to pages of the site.
"""

import html
import posixpath
import re
import textwrap
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
ELSEWHERE = {  # file of the repository -> page of the site
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/gpu/README.md": "benchmarks-gpu.md",
    "benchmarks/growth/growth.png": "figures/growth.png",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "LICENSE": "license.md",
}
STUDIES = sorted(path.stem for path in (ROOT / "sweeps").glob("*.yaml"))
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
PICTURE = re.compile(r"```mermaid\n(.*?)```", re.DOTALL)


def on_config(config: Any) -> Any:
    """List the studies' pages under Studies."""
    (studies,) = (item["Studies"] for item in config.nav if "Studies" in item)
    studies += [{name: f"studies/{name}.md"} for name in STUDIES]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not in docs/."""
    for source, page in ELSEWHERE.items():
        if page.endswith(".png"):
            content: bytes | str = (ROOT / source).read_bytes()
        else:
            content = (ROOT / source).read_text("utf-8")
            content = content if source.endswith(".md") else f"# License\n\n```text\n{content}```\n"
        files.append(File.generated(config, page, content=content))
    for name in STUDIES:
        files.append(File.generated(config, f"studies/{name}.md", content=study_page(name)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links to files of the repository into links to pages, and draw the house."""
    name = page.file.src_uri
    source = next((s for s, p in ELSEWHERE.items() if p == name), f"docs/{name}")
    markdown = PICTURE.sub(lambda found: house(found[1]), markdown)
    return LINK.sub(lambda m: f"{m[1]}{moved(m[2], source, name)}{m[3]}", markdown)


def moved(target: str, source: str, page: str) -> str:
    """Return a link on a page, made from the one that the page's file has."""
    if "://" in target:
        return target
    file = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    if found := re.fullmatch(r"(?:sweeps|analysis)/(\w+)\.(?:yaml|py)", file):
        led = f"studies/{found[1]}.md"
    else:
        led = ELSEWHERE.get(file, file.removeprefix("docs/"))
    return posixpath.relpath(led, posixpath.dirname(page) or ".")


def study_page(name: str) -> str:
    """Return the page of a study: the sweep's header, its runs, the notebook and its output.

    The output is that of `docs/outputs/NAME.txt` and the pictures `docs/figures/NAME-*.png`.
    """
    sweep = (ROOT / "sweeps" / f"{name}.yaml").read_text("utf-8")
    lines = sweep.splitlines()
    count = next(at for at, line in enumerate(lines) if not line.startswith("#"))
    about = _prose(line.removeprefix("#").removeprefix(" ") for line in lines[:count])
    body = "\n".join(lines[count:])
    _, notebook = (ROOT / "analysis" / f"{name}.py").read_text("utf-8").split("# ---\n# %%", 1)
    return (
        f"# {name}\n\n{about}\n\n## What is asked: sweeps/{name}.yaml\n\n"
        f"```yaml\n{body}\n```\n\n## What answers: analysis/{name}.py\n\n"
        f"{_cells(notebook)}\n{_output(name)}"
    )


def _prose(header: Iterable[str]) -> str:
    """Return the header of a sweep as Markdown: paragraphs, and what is indented as it is."""
    parts = []
    for block in "\n".join(header).strip("\n").split("\n\n"):
        lists = re.search(r"^- ", block, re.MULTILINE)  # whose further lines are indented too
        for code, lines in groupby(
            block.split("\n"), lambda line, lists=lists: line.startswith("  ") and not lists
        ):
            text = "\n".join(lines)
            parts.append(f"```text\n{textwrap.dedent(text)}\n```" if code else text)
    return "\n\n".join(parts)


def _cells(notebook: str) -> str:
    """Return the cells of a notebook in percent format as Markdown."""
    parts = []
    for cell in re.split(r"^(?:# )?%%", notebook, flags=re.MULTILINE):
        kind, _, body = cell.partition("\n")
        if "[markdown]" in kind:
            text = re.sub(r"^# ?", "", body.strip(), flags=re.MULTILINE)
            parts.append(re.sub(r"^#+ ", "### ", text, flags=re.MULTILINE))
        elif body.strip():
            parts.append(f"```python\n{body.strip()}\n```")
    return "\n\n".join(parts)


def _output(name: str) -> str:
    """Return what the notebook of a study printed and drew; nothing if that is not kept."""
    printed = ROOT / "docs" / "outputs" / f"{name}.txt"
    pictures = sorted((ROOT / "docs" / "figures").glob(f"{name}-*.png"))
    text = f"\n```text\n{printed.read_text('utf-8')}```\n" if printed.is_file() else ""
    text += "".join(f"\n![{path.stem}](../figures/{path.name})\n" for path in pictures)
    return f"\n## What it showed\n{text}" if text else ""


def house(diagram: str) -> str:
    """Return the Mermaid diagram of the rooms as HTML: a row a floor, and what each room imports.

    The site draws it itself, because the program that draws Mermaid would come from the network.
    """
    names = dict(re.findall(r'^ {4}(\w+)\["(.*)"\]$', diagram, re.MULTILINE))
    arrows = re.findall(r"^ {2}(\w+) --> (\w+)$", diagram, re.MULTILINE)
    rows = []
    for floor in re.findall(r"subgraph floor\d.*?\n(.*?) {2}end", diagram, re.DOTALL):
        boxes = []
        for room in re.findall(r"^ {4}(\w+)\[", floor, re.MULTILINE):
            needed = ", ".join(target for source, target in arrows if source == room)
            text = re.sub(r"`(.*?)`", r"<code>\1</code>", names[room])
            note = f"<br/><small>imports {html.escape(needed)}</small>" if needed else ""
            boxes.append(f"<div>{text}{note}</div>")
        rows.append(f'<div class="floor">{"".join(boxes)}</div>')
    return f'<div class="house">{"".join(rows)}</div>'
