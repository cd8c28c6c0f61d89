"""What the benchmarks compute from times, and where they write it; nothing is timed."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import bench
from benchmarks.growth import run as growth
from benchmarks.lib import regression, results, timing
from benchmarks.lib.pages import filled

OURS, PEER = [0.1, 0.2, 0.4], [0.2, 0.2, 0.2]


def row(middle: float, goal: float | None, better: str = "at least", what: str = "views") -> Any:
    """Return a row whose interval is a tenth to either side."""
    ratio = timing.Interval(middle, 0.9 * middle, 1.1 * middle)
    return results.Row(what, "kornia", 2 * middle, 2.0, "ms", ratio, better, goal)


def test_times_are_ours_over_the_peers_and_rates_the_other_way_round() -> None:
    times = results.Times(OURS, PEER)
    found = times.row("a", "b", "at most", 1.0)
    assert (found.value, found.peer_value) == pytest.approx((200, 200))  # ms
    assert found.ratio == pytest.approx((1.0, 0.5, 2.0))
    rates = times.row("a", "b", "at least", 1.0, items=10, unit="images/s")
    assert (rates.value, rates.peer_value) == pytest.approx((50, 50))
    assert rates.ratio == pytest.approx((1.0, 0.5, 2.0))
    slow = results.Times([0.4] * 3, PEER)
    assert slow.row("a", "b", "at most").ratio.middle == pytest.approx(2)
    assert slow.row("a", "b", "at least", items=1).ratio.middle == pytest.approx(0.5)


def test_a_goal_is_met_on_its_own_side_and_within_a_margin() -> None:
    assert row(1.2, 1.2).met
    assert row(1.1, 1.2).met is False
    assert row(1.1, 1.2).within(0.1)
    assert row(1.1, 1.2, "at most").met
    assert row(1.3, 1.2, "at most").met is False
    assert row(1.3, 1.2, "at most").within(0.1)
    assert row(1.3, None).met is None


def test_the_interval_of_a_median_holds_it_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    for n in (6, 9, 20):
        intervals = [timing.median_interval(list(rng.exponential(size=n))) for _ in range(2000)]
        held = np.mean([low <= np.log(2) <= high for _, low, high in intervals])
        assert 0.94 < held < 0.99
    assert timing.median_interval([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)


def test_rows_come_back_from_json_and_are_written_as_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row(1.5, 1.2), row(0.8, 1.2, what="crops"), row(1.5, None, what="flips")]
    file = tmp_path / "rows.json"
    words = ["--quick", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", [str(results.ROOT / "benchmarks/speed/views.py"), *words])
    given = results.parser("Views.").parse_args(words)
    results.publish(rows, given, peers=["numpy", "no-such-package"], notes=["Why."])
    content = json.loads(file.read_text())
    assert results.read_rows(content) == rows
    table = capsys.readouterr().out
    assert table.startswith("`python -m benchmarks.speed.views --quick` (CPU, 1 thread of ")
    assert "no-such-package missing" in table
    assert "| views | kornia | 3 ms | 2 ms | 1.5 (1.35..1.65) | at least 1.2 | yes |" in table
    assert "| crops | kornia | 1.6 ms | 2 ms | 0.8 (0.72..0.88) | at least 1.2 | **no** |" in table
    assert "| flips | kornia | 3 ms | 2 ms | 1.5 (1.35..1.65) |  |  |" in table
    assert table.rstrip().endswith("\n\nWhy.")


def test_the_filler_leaves_other_text_alone_and_asks_for_its_markers(tmp_path: Path) -> None:
    text = "# Top\n<!-- knn -->\nold\n<!-- /knn -->\nend | of\n"
    file = tmp_path / "README.md"
    assert filled(text, "knn", "new", file) == "# Top\n<!-- knn -->\nnew\n<!-- /knn -->\nend | of\n"
    for broken in (text.replace("<!-- /knn -->", ""), text + text):
        with pytest.raises(ValueError, match=rf"{re.escape(str(file))}: <!-- /?knn -->"):
            filled(broken, "knn", "new", file)
    with pytest.raises(ValueError, match="comes before"):
        filled("<!-- /knn -->\n<!-- knn -->", "knn", "new", file)


def test_the_readme_holds_what_is_on_record_under_the_headings_that_are_linked() -> None:
    text, record = bench.README.read_text(), bench.read_record(bench.RECORD)
    assert bench.page(text, record) == text
    for name, module, heading in bench.SECTIONS:
        assert f"\n## {heading}\n" in text
        assert (bench.FOLDER / f"{module.replace('.', '/')}.py").exists() or name not in record


def test_goals_are_listed_and_rows_without_one_are_not() -> None:
    content = {"rows": [vars(row(1, 2.0)), vars(row(1, None, what="flips"))]}
    lines = bench.goals({"views": {"full": content}}).splitlines()
    assert lines[2:] == [
        "| [Views](#views) | views | kornia | 1 (0.9..1.1) | at least 2 | **no** |"
    ]


def test_regressions_are_named_with_what_was_asked() -> None:
    recorded = [row(2.0, 1.5), row(1.0, 1.5, what="crops"), row(3.0, 2.0, "at most", "memory")]
    same = regression.regressions(recorded, recorded)
    noisy = [row(1.2, 1.5), row(0.7, 1.5, what="crops"), row(4.0, 2.0, "at most", "memory")]
    assert same == regression.regressions(recorded, noisy) == []
    slow = [row(1.1, 1.5), row(0.6, 1.5, what="crops"), row(4.2, 2.0, "at most", "memory")]
    lines = regression.regressions(recorded, slow)
    assert [line.split(": ")[0] for line in lines] == [
        f"{what} against kornia" for what in ("views", "crops", "memory")
    ]
    assert "1.1 (0.99..1.21), at least 1.12 is asked (the goal, with a margin of 25%)" in lines[0]
    assert "at least 0.675 is asked (the record" in lines[1]
    assert "at most 4.12 is asked (the record" in lines[2]
    assert regression.regressions(recorded, slow[:1])[0] == (
        "crops against kornia: recorded, but not measured"
    )
    assert len(regression.regressions([], [row(1.1, 1.5)])) == 1  # new, and does not meet its goal
    assert regression.regressions([row(2.0, None)], []) == []


def test_a_script_that_fails_is_named_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """views works and knn fails: the page has the new table of views and the old one of knn."""
    content = {"command": "c", "circumstances": "here", "rows": [vars(row(1, 2.0))], "notes": []}
    (tmp_path / "rows.json").write_text(json.dumps(content))
    views = f"import shutil, sys\nshutil.copy({str(tmp_path / 'rows.json')!r}, sys.argv[-1])"
    speed = tmp_path / "benchmarks" / "speed"
    speed.mkdir(parents=True)
    for package in (speed.parent, speed):
        (package / "__init__.py").touch()
    (speed / "views.py").write_text(views)
    (speed / "knn.py").write_text("raise SystemExit('no faiss')")
    page = "\n".join(f"<!-- {n} -->\nold\n<!-- /{n} -->" for n in ("goals", *bench.NAMES))
    (tmp_path / "README.md").write_text(page)
    old = {"knn": {"full": content | {"command": "before"}, "quick": content}}
    (tmp_path / "results.json").write_text(json.dumps(old))
    run = bench.run
    monkeypatch.setattr(bench, "README", tmp_path / "README.md")
    monkeypatch.setattr(bench, "RECORD", tmp_path / "results.json")
    monkeypatch.setattr(bench, "run", lambda name, *o: run(name, *o, folder=tmp_path))
    monkeypatch.setattr(sys, "argv", ["bench", "views", "knn"])
    with pytest.raises(SystemExit, match=r"failed, .*: knn") as stopped:
        bench.main()
    assert stopped.value.code != 0
    assert "benchmarks.speed.knn failed with exit status 1:\nno faiss" in capsys.readouterr().err
    page = (tmp_path / "README.md").read_text()
    assert "`c` (here)" in page
    assert "`before` (here)" in page
    assert json.loads((tmp_path / "results.json").read_text()).keys() == {"views", "knn"}


def test_a_slope_is_the_power_and_that_of_a_sum_lies_between() -> None:
    sizes = [1, 2, 4, 8]
    assert growth.slope(sizes, [3 * n**1.5 for n in sizes]) == pytest.approx(1.5)
    assert 1 < growth.slope(sizes, [n + n**2 for n in sizes]) < 2
    values = [[2 * n for n in sizes], [5 * n**1.2 for n in sizes]]
    curve = growth.Curve("step", "batch", "s", sizes, values, [float(n) for n in sizes])
    assert curve.slopes == pytest.approx([1.0, 1.2])
    assert curve.expected == pytest.approx(1.0)


def test_growth_is_the_last_size_over_the_first_beside_that_of_theory() -> None:
    curve = growth.Curve("step", "batch", "s", [1, 8], [[2, 20], [5, 30]], [1.0, 8.0])
    assert curve.row().ratio == pytest.approx((1.0, 0.75, 1.25))
    assert (curve.row().value, curve.row().peer_value) == (8, 8)
    assert curve.row().what == "step, time from batch 1 to 8"


def test_memory_is_what_a_call_holds_at_most() -> None:
    def call() -> None:
        for _ in range(3):  # one at a time
            torch.ones(2**20)
            np.ones(2**18)

    found = growth.peak_bytes(call, torch.device("cpu")) / 2**20
    assert 4 + 2 <= found < 4 + 2 + 1
