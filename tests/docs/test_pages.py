"""The pages say what is true: links lead somewhere, commands parse, generated pages are fresh."""

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest

import stabkit
from stabkit.analyze.plots import PLOTS
from stabkit.cli.parser import VERBS, build_parser
from stabkit.yamlio import read_yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *(ROOT / "benchmarks").rglob("README.md"),
    *sorted(DOCS.glob("*.md")),
]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def tool(name: str) -> ModuleType:
    """Import a script of docs/tools."""
    spec = importlib.util.spec_from_file_location(name, DOCS / "tools" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prose(page: Path) -> str:
    """Return a page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S)


def anchors(page: Path) -> list[str]:
    """Return what a heading is called in a link, as GitHub and the site make it."""
    heads = re.findall(r"^#+ (.*)$", prose(page), re.M)
    return [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads]


def test_anchors_are_made_as_github_makes_them() -> None:
    assert "what-the-monitor-adds-to-a-step" in anchors(ROOT / "benchmarks" / "README.md")
    assert "dips-log_eval" in anchors(DOCS / "monitor.md")


def test_each_page_saves_its_loop_in_a_file_of_its_own_that_git_ignores() -> None:
    files = [f for page in PAGES for f in re.findall(r"Save this as\s`([\w.]+)`", prose(page))]
    assert len(files) == len(set(files)) > 1
    ignored = (ROOT / ".gitignore").read_text("utf-8").split()
    assert {f"/{file}" for file in files} <= set(ignored)


@pytest.mark.parametrize("page", ["README.md", "docs/index.md", "docs/install.md"])
def test_the_first_line_to_paste_installs_from_a_clone(page: str) -> None:
    found = re.search(r"^```\n(.*?)(?: +#.*)?$", (ROOT / page).read_text("utf-8"), re.M)
    assert found
    assert found[1] == "pip install ."


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose(page))):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_parses(page: Path) -> None:
    """The verb of every line that begins with `stabkit` exists, and it takes the options."""
    blocks = re.findall(r"^```(?:bash|sh)?\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)
    for line in "".join(blocks).splitlines():
        if line.startswith("stabkit ") and "VERB" not in line:
            words = shlex.split(re.sub(r"[\[\]]", "", line), comments=True)[1:]
            words = words[: words.index(">")] if ">" in words else words
            assert words[0].startswith("-") or words[0] in VERBS, line
            _, rest = build_parser(words[0]).parse_known_args(words)
            assert all(re.fullmatch(r"[\w.]+=\S+", word) for word in rest), line


@pytest.mark.parametrize(("name", "page"), [("settings", "settings.md"), ("gallery", "gallery.md")])
def test_a_generated_page_is_as_its_script_writes_it(name: str, page: str) -> None:
    fresh = (DOCS / page).read_text("utf-8") == tool(name).page()
    assert fresh, f"run: python docs/tools/{name}.py"


def test_the_gallery_has_a_small_picture_of_every_figure() -> None:
    sizes = {path.stem: path.stat().st_size for path in (DOCS / "figures/gallery").glob("*.png")}
    assert sizes.keys() == PLOTS.keys()
    assert max(sizes.values()) < 150_000


def test_the_api_page_has_every_public_name() -> None:
    said = re.findall(r"^::: stabkit\.(\w+)$", (DOCS / "api.md").read_text("utf-8"), re.M)
    assert sorted(said) == sorted(set(stabkit.__all__) - {"__version__"})


def test_the_citation_is_of_this_version() -> None:
    assert read_yaml(ROOT / "CITATION.cff")["version"] == stabkit.__version__
