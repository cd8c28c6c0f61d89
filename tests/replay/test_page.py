"""The page about replays: its loop runs, and its numbers are those of the code."""

import re
import runpy
from pathlib import Path

import pytest

from stabkit.config.run import RuntimeConfig
from stabkit.replay import answer, plan

PAGE = (Path(__file__).parents[2] / "docs/replay.md").read_text("utf-8")


@pytest.mark.lengthy
def test_the_loop_on_the_page_goes_back_and_ends_in_the_same_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    block = re.search(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
    assert block
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(block[1])
    runpy.run_path("mine.py", run_name="__main__")
    assert capsys.readouterr().out == "True\n"


def test_the_page_gives_the_numbers_of_the_code() -> None:
    text = " ".join(PAGE.split())
    assert f"stands {plan.LEAD} steps or more before the onset" in text
    assert plan.EVALUATIONS == 4
    assert "or four after the onset" in text
    assert f"below {answer.SATURATED} of its maximum" in text
    assert RuntimeConfig().keep_states == 0
