"""The report in a real browser: it loads nothing, breaks nothing, and everything can be reached."""

import functools
import json
import os
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
from selenium.common.exceptions import NoAlertPresentException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.report import page as page_module
from stabkit.analyze.report.contents import Report, make_report
from stabkit.cli import main
from stabkit.printing import one_line
from stabkit.rundir import RunDir
from tests.analyze.browser import Browser, missing, running_browser
from tests.analyze.conftest import plant_run

pytestmark = pytest.mark.browser

TAG = "</script><script>alert(1)</script>"  # no folder can be called so, but a setting can
NAMES = [
    "\"><img src=x onerror='alert(1)'>",
    "&lt;b&gt; & 'quotes' \"double\" {{ 7 * 7 }} $x_{",
    "x" * 240,
    "\u202eright to left שלום \u0627\u0644",
]
LONE = "not \udcff text"  # half a character, which has no encoding
REACHABLE = """
return [...document.querySelectorAll('a[href], button, summary, input, [tabindex="0"]')]
    .filter(item => item.checkVisibility())
"""


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Skips where there is no Chromium; fails where one is required."""
    if reason := missing():
        if os.environ.get("STABKIT_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    with running_browser() as running:
        yield running


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plant runs whose names, settings and layers try to be more than text."""
    folder = tmp_path_factory.mktemp("hostile") / '<i>runs & "more"'
    for number, name in enumerate(NAMES):
        bad = number < 2
        plant_run(folder / name, dip=0.08 * bad, spike=bad, seed=number)
        run = RunDir(folder / name)
        # the one setting that differs, so that figures and charts are labelled with it
        config = run.config_file.read_text() + f"extra: {json.dumps(name + TAG)}\n"
        run.config_file.write_text(config)
        run.append_entry("nonfinite", 7, layers=[f"<b>{number}</b>{TAG}", LONE])
    return folder


@pytest.fixture(scope="module", params=["plain", "interactive"])
def page(
    hostile: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Path:
    out = tmp_path_factory.mktemp("page") / "report.html"
    words = ["--interactive"] if request.param == "interactive" else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_module, "make_report", make_once)
        assert main(["report", str(hostile), "-o", str(out), *words]) == 0
    return out


@functools.cache
def _made() -> list[Report]:
    return []


def make_once(runs: Diagnoses) -> Report:
    """Draw the report for the first page only: the other one has the same pictures."""
    if not _made():
        _made().append(make_report(runs))
    return _made()[0]


def settled(browser: Browser) -> bool:
    """Every chart drawn, and so every style set that the policy may refuse."""
    return bool(
        browser.js(
            "return [...document.querySelectorAll('.chart')]"
            ".every(chart => chart.querySelector('.scatterlayer .js-line'))"
        )
    )


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (375, False), (1200, True)])
def test_it_asks_for_nothing_and_says_nothing(
    browser: Browser, page: Path, width: int, dark: bool
) -> None:
    browser.open(page, width, dark)
    browser.wait("charts", lambda: settled(browser))
    assert browser.messages() == []
    assert browser.requests() == [page.as_uri()]
    sizes = browser.js("return [...document.images].map(i => [i.naturalWidth, i.complete, i.alt])")
    assert len(sizes) >= 2
    for natural, complete, alt in sizes:
        assert natural > 0
        assert complete
        assert len(alt.split()) > 5, alt
    assert browser.js("return document.documentElement.scrollWidth <= innerWidth")
    dark_page = browser.js("return getComputedStyle(document.body).backgroundColor")
    assert (dark_page == "rgb(255, 255, 255)") is not dark


def test_a_policy_that_is_broken_would_be_seen(browser: Browser, tmp_path: Path) -> None:
    """What the test above relies on: refusals and requests do show."""
    page = tmp_path / "bad.html"
    policy = "default-src 'none'"
    page.write_text(
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><style>p {{}}</style>'
        '<script>document.title = "ran"</script><img src="other.png">'
    )
    browser.open(page)
    assert len(browser.messages()) >= 3
    page.write_text('<img src="other.png">')
    browser.open(page)
    assert len(browser.requests()) == 2


def test_hostile_names_are_text(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.wait("charts", lambda: settled(browser))
    with pytest.raises(NoAlertPresentException):
        _ = browser.driver.switch_to.alert.text
    browser.js("document.querySelectorAll('details').forEach(item => item.open = true)")
    text = browser.js("return document.body.innerText")
    for name in map(one_line, NAMES):  # what would turn the line around is shown as an escape
        assert name in text
        assert name + TAG in text
    assert "\u202e" not in text
    if browser.js("return document.querySelector('.chart')"):
        legend = browser.js(
            "return [...document.querySelector('.chart').querySelectorAll('.legendtext')]"
            ".map(item => item.textContent)"
        )
        assert [TAG in name for name in legend] == [True] * len(NAMES)
        assert any("&lt;b&gt; & 'quotes'" in name for name in legend)
    assert "not \\udcff text" in text
    assert f"<b>0</b>{TAG}" in text
    assert browser.js("return document.querySelector('img[src=x], main b')") is None
    scripts = browser.js("return [...document.scripts].filter(s => !s.type).length")
    assert scripts == (3 if browser.js("return document.querySelector('.chart')") else 1)
    # a name written from right to left turns nothing around but itself
    assert browser.js(
        "return [...document.querySelectorAll('th, td')].every(c => c.querySelector('bdi')"
        " || c.scope === 'col')"
    )


def test_the_tab_key_reaches_everything(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.wait("charts", lambda: settled(browser))
    wanted = browser.js(REACHABLE)
    reached = list[WebElement]()
    for _ in range(3 * len(wanted) + 20):  # a busy browser may lose a key
        ActionChains(browser.driver).send_keys(Keys.TAB).perform()
        now = browser.js("return document.activeElement")
        if reached and now == reached[0] != reached[-1]:
            break  # it begins anew
        reached.append(now)
    lost = [item.get_attribute("outerHTML")[:200] for item in wanted if item not in reached]
    assert lost == []
    assert browser.js("return document.querySelector('.skip')") == reached[0]
    outline = (
        "const e = document.querySelector('summary'); e.focus({focusVisible: true});"
        "return parseFloat(getComputedStyle(e).outlineWidth)"
    )
    assert browser.js(outline) >= 2


@pytest.mark.parametrize("page", ["plain"], indirect=True)
def test_only_what_scrolls_is_a_stop_of_the_tab_key(browser: Browser, page: Path) -> None:
    stops = (
        "return [...document.querySelectorAll('.scroll, pre')].filter(e => e.checkVisibility())"
        ".map(e => [e.tabIndex === 0, e.scrollWidth > e.clientWidth])"
    )
    for width, scrolled in ((1280, False), (390, True)):
        browser.open(page, width)
        browser.js("document.querySelectorAll('details').forEach(item => item.open = true)")
        browser.wait("stops", lambda: all(stop == wide for stop, wide in browser.js(stops)), 20)
        assert any(wide for _, wide in browser.js(stops)) == scrolled, width


def test_the_contents_lead_somewhere_and_headings_are_in_order(
    browser: Browser, page: Path
) -> None:
    browser.open(page)
    assert browser.js(
        "return [...document.querySelectorAll('nav a, .skip')]"
        ".every(a => document.getElementById(a.hash.slice(1)))"
    )
    levels = browser.js(
        "return [...document.querySelectorAll('h1,h2,h3,h4,h5,h6')].map(h => +h.tagName[1])"
    )
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))
    names = browser.js("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(names) == len(set(names))
    assert browser.js("return document.documentElement.lang") == "en"


@pytest.mark.parametrize("page", ["plain"], indirect=True)
def test_words_in_pictures_can_be_read_on_a_narrow_page(browser: Browser, page: Path) -> None:
    """A picture is made smaller by a third at most; a wider one is scrolled within the page."""
    browser.open(page, 390)
    browser.js("document.querySelectorAll('details').forEach(item => item.open = true)")
    sizes = browser.js(
        "return [...document.images].map(i => [i.width, +i.getAttribute('width'), i.alt])"
    )
    assert [alt for shown, drawn, alt in sizes if shown < 0.67 * drawn] == []
    (wide, *_) = browser.js(
        "return [...document.querySelectorAll('.picture')].map(p => [p.scrollWidth, p.clientWidth])"
    )
    assert wide[0] > wide[1], "the layer map is wider than the page"
    assert browser.js("return document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("page", ["plain"], indirect=True)
def test_no_hole_is_left_below_a_short_figure(browser: Browser, page: Path) -> None:
    """Five figures of unequal height, in place of those of the page."""
    browser.open(page, 1280)
    boxes = browser.js(
        "const all = document.querySelector('.figures');"
        "all.innerHTML = '<figure></figure>'.repeat(5);"
        "[100, 400, 120, 90, 300].forEach((h, i) => all.children[i].style.height = `${h}px`);"
        "return [...all.children]"
        ".map(f => f.getBoundingClientRect()).map(b => [b.left, b.top, b.bottom])"
    )
    assert len({left for left, _, _ in boxes}) == 2
    for (left, _, bottom), (after, top, _) in pairwise(boxes):
        assert after > left or top - bottom < 1


def test_details_show_on_paper(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    shown = browser.js(
        "return [...document.querySelectorAll('details > :not(summary)')]"
        ".map(e => e.checkVisibility())"
    )
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert shown
    assert all(shown)


def test_paper_shows_events_beside_their_pictures_and_whole_words(
    browser: Browser, page: Path
) -> None:
    browser.open(page, 718)  # A4 between its margins
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    boxes = browser.js(
        "return [...document.querySelectorAll('.card')].filter(c => c.querySelector('img'))"
        ".map(c => [...c.children].map(e => e.getBoundingClientRect()))"
        ".map(([words, image]) => [words.right, image.left])"
    )
    names = browser.js("return [...document.querySelectorAll('tbody th')].map(e => e.offsetWidth)")
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert boxes
    assert all(words <= image for words, image in boxes)
    assert min(width for width in names if width) >= 70


def axe_script() -> Path | None:
    """Return axe-core's script, from STABKIT_AXE or the package axe-core-python."""
    if named := os.environ.get("STABKIT_AXE"):
        return Path(named)
    spec = find_spec("axe_core_python")
    folders = spec.submodule_search_locations if spec else None
    return Path(folders[0]) / "axe.min.js" if folders else None


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
@pytest.mark.parametrize("page", ["plain"], indirect=True)
def test_axe_finds_no_violation(browser: Browser, page: Path, width: int, dark: bool) -> None:
    script = axe_script()
    if script is None:
        lacking = "no axe-core here: pip install axe-core-python, or name axe.min.js: STABKIT_AXE"
        (pytest.fail if os.environ.get("STABKIT_REQUIRE_BROWSER") else pytest.skip)(lacking)
    browser.open(page, width, dark)
    browser.js("document.querySelectorAll('details').forEach(item => item.open = true)")
    # the page's policy keeps scripts out; the debugger does not ask it
    expression = script.read_text(encoding="utf-8")
    browser.driver.execute_cdp_cmd("Runtime.evaluate", {"expression": expression})
    browser.driver.set_script_timeout(60)
    found = browser.driver.execute_async_script(
        "const done = arguments[0];"
        "axe.run().then(r => done(r.violations.map(v => [v.id, v.nodes[0].html.slice(0, 200)])))"
    )
    assert found == []


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("page", ["plain"], indirect=True)
def test_a_screen_reader_finds_names_and_tables(browser: Browser, page: Path, width: int) -> None:
    """The accessibility tree: everything drawn has a name; a narrow table is still a table."""
    browser.open(page, width)
    tree = browser.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    shown = [node for node in tree if not node["ignored"]]
    roles = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in shown]
    for role in ("image", "img", "graphics-document", "region", "link", "table", "heading"):
        assert [name for kind, name in roles if kind == role and not name.strip()] == [], role
    kinds = [kind for kind, _ in roles]
    assert kinds.count("table") >= 2
    assert min(map(kinds.count, ("row", "columnheader", "rowheader", "cell"))) >= 2
    assert any("Events of" in name for _, name in roles), "the time line is told in words"
    assert ("Where did it start?" in {name for _, name in roles}) is True


@pytest.mark.parametrize("page", ["interactive"], indirect=True)
def test_a_chart_zooms_and_sends_nothing_away(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.wait("charts", lambda: settled(browser))
    # in place of the pictures: accuracy, and the gradients of every cell
    assert browser.js("return document.querySelectorAll('.chart').length") == 1 + len(NAMES)
    shaded = browser.js(
        "return document.querySelector('.chart').layout.shapes.filter(s => s.type == 'rect').length"
    )
    assert shaded == 2, "the two planted dips"
    buttons = browser.js(
        "return [...document.querySelector('.chart').querySelectorAll('.modebar-btn')]"
        ".map(b => b.dataset.title)"
    )
    assert buttons == ["Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes"]
    span = "const r = document.querySelector('.chart').layout.xaxis.range; return r[1] - r[0]"
    before = browser.js(span)
    browser.js("document.querySelector('.chart [data-title=\"Zoom in\"]').click()")
    browser.wait("zoom", lambda: browser.js(span) < before)
    last = span.replace(
        "document.querySelector('.chart')", "[...document.querySelectorAll('.chart')].at(-1)"
    )
    browser.wait("the others follow", lambda: browser.js(last) == browser.js(span))
    assert browser.messages() == []
