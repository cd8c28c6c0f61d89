"""What nothing recorded could show is said when it is asked for."""

from pathlib import Path
from typing import Any

import pytest
import torch

import stabkit
from stabkit import Monitor, Probe
from tests.monitor.toy import Toy

VIEW = torch.ones(4, 3)


def made(folder: Path, **options: Any) -> Monitor:
    model = torch.nn.Linear(3, 2)
    return Monitor(model, torch.optim.AdamW(model.parameters()), folder, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"signals": "grad_norm", "probe": Probe(VIEW)},
        {"signals": "grad_norm", "teacher": torch.nn.Linear(3, 2)},
    ],
)
def test_a_collapse_that_nothing_measures_is_said_once(
    tmp_path: Path, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with made(tmp_path, **options) as monitor:
        monitor.on("collapse", "log")
        monitor.on("collapse", "mark")
    (said,) = (message for message in caplog.messages if "a collapse is looked for" in message)
    assert "nothing measures one so far" in said
    assert "or log feature_std or effective_rank in the loop" in said


@pytest.mark.parametrize(
    "options",
    [
        {"signals": ["probe_rank"], "probe": Probe(VIEW)},
        {"teacher": torch.nn.Linear(3, 2), "probe": Probe(VIEW)},
    ],
)
def test_a_collapse_is_looked_for_in_what_a_probe_measures(
    tmp_path: Path, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with made(tmp_path, **options) as monitor:
        monitor.on("collapse", "log")
    assert not caplog.messages


def test_a_collapse_is_found_in_a_spread_that_the_loop_logs(tmp_path: Path) -> None:
    found: list[Any] = []
    toy = Toy()
    with toy.monitor(tmp_path, flush_every=5) as monitor:
        monitor.on("collapse", found.append)
        for step in range(40):
            toy.steps(1)
            monitor.log(feature_std=1.0 if step < 20 else 0.1)
    assert [(event.kind, event.step) for event in found] == [("collapse", 20)]


def test_nothing_is_said_of_what_may_be_logged_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with made(tmp_path, signals=[]) as monitor:
        for kind in ("spike", "nonfinite", "dip"):
            monitor.on(kind, "log")
    assert caplog.messages == []


def test_an_evaluation_in_which_no_dip_can_be_seen_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with made(tmp_path) as monitor:
        monitor.log_accuracy("before", 0.5)
        monitor.on("dip", "log")
        for step in range(3):
            monitor.log_accuracy("top1", 0.5, step=step)
        monitor.log_eval("val", torch.ones(4), torch.ones(4))
    (said,) = caplog.messages
    assert "top1 was logged without the answer to each sample" in said
    assert "use log_eval" in said
    assert set(stabkit.open_run(tmp_path).evals()["metric"]) >= {"before", "val"}
