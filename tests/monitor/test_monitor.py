"""The Monitor in a loop that is not ours."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import stabkit
from stabkit.cli import main
from tests.monitor.toy import Toy, assert_whole


def small_training(
    steps: int, folder: Path | None, bad_step: int | None = None
) -> tuple[list[float], nn.Module]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    monitor = stabkit.Monitor(model, optimizer, folder, flush_every=4) if folder else None
    losses = []
    for step in range(steps):
        loss = model(torch.randn(16, 4)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if step == bad_step:
            model[2].bias.grad.fill_(math.inf)
        optimizer.step()
        if monitor:
            monitor.log(loss=loss, epoch=step / 10)
        losses.append(loss.item())
    if monitor:
        monitor.close()
    return losses, model


def test_losses_and_weights_are_bit_equal_with_and_without(tmp_path: Path) -> None:
    losses, model = small_training(11, tmp_path)
    bare_losses, bare_model = small_training(11, None)
    assert losses == bare_losses
    for p, q in zip(model.parameters(), bare_model.parameters(), strict=True):
        assert p.equal(q)
    run = stabkit.open_run(tmp_path)
    assert run.scalar("loss").tolist() == losses
    assert run.scalar("epoch").tolist() == [s / 10 for s in range(11)]


def test_norms_are_those_of_the_gradients_the_optimizer_sees(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen: list[tuple[float, float]] = []
    with stabkit.Monitor(model, optimizer, tmp_path, flush_every=2, full_every=1):
        for step in range(5):
            optimizer.zero_grad()
            for _ in range(2):  # two micro-batches: the sum counts
                model(torch.full((4, 3), step + 1.0)).sum().backward()
            grads = torch.cat([p.grad.flatten() for p in model.parameters()]).double()
            seen.append((float(grads.norm()), float(grads.abs().max())))
            optimizer.step()
    signals = stabkit.open_run(tmp_path).signals()
    by_step = signals.groupby("step").agg(
        {"grad_norm": lambda g: math.hypot(*g), "grad_max": "max"}
    )
    np.testing.assert_allclose(by_step.to_numpy(), np.array(seen), rtol=1e-6)


def test_a_non_finite_gradient_is_an_event_with_its_layer_and_step(tmp_path: Path) -> None:
    small_training(12, tmp_path, bad_step=5)
    events = stabkit.open_run(tmp_path).log()
    assert events["kind"].tolist() == ["nonfinite"]
    assert events["step"].tolist() == [5]
    assert events["layers"].iloc[0] == ["2"]


def test_a_restart_within_a_non_finite_stretch_does_not_repeat_its_event(tmp_path: Path) -> None:
    def steps(first: int, count: int) -> None:
        model = nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        with stabkit.Monitor(model, optimizer, tmp_path, first_step=first):
            for step in range(first, first + count):
                bad = 3 <= step < 7 or step >= 9
                for p in model.parameters():
                    p.data.zero_()  # the weights stay finite: only gradients are bad
                    p.grad = torch.full_like(p, math.nan if bad else 1.0)
                optimizer.step()

    steps(0, 6)
    steps(5, 6)
    events = stabkit.open_run(tmp_path).log()
    assert events["step"].tolist() == [3, 9]


def test_resuming_drops_the_rows_that_are_made_again(tmp_path: Path) -> None:
    small_training(8, tmp_path)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    with stabkit.Monitor(model, optimizer, tmp_path, first_step=5) as monitor:
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
        monitor.log(loss=7.0)
    loss = stabkit.open_run(tmp_path).scalar("loss")
    assert loss.index.tolist() == [0, 1, 2, 3, 4, 5]
    assert loss.iloc[-1] == 7.0


def test_nothing_is_read_from_the_device_within_an_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU there is no stream to stall, so reads themselves are counted."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = stabkit.Monitor(model, optimizer, tmp_path, flush_every=100)
    reads: list[str] = []
    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__"):
        original = getattr(Tensor, name)

        def counted(
            self: Tensor, *args: object, _of: object = original, _name: str = name
        ) -> object:
            reads.append(_name)
            return _of(self, *args)  # type: ignore[operator]

        monkeypatch.setattr(Tensor, name, counted)
    for _ in range(20):
        loss = model(torch.ones(4, 3)).sum()
        loss.backward()
        before = len(reads)
        optimizer.step()
        monitor.log(loss=loss)
        assert reads[before:] == []
    monitor.close()
    assert "numpy" in reads


def test_closing_lets_go_of_the_optimizer(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with stabkit.Monitor(model, optimizer, tmp_path) as monitor:
        pass
    assert repr(monitor) == f"<Monitor of {str(tmp_path)!r}: step 0, 2 layers>"
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert stabkit.load(tmp_path).signals().empty
    with pytest.raises(ValueError, match="no parameters"):
        stabkit.Monitor(nn.ReLU(), optimizer, tmp_path)


def test_the_status_says_how_a_recorded_training_stands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def status() -> str:
        assert main(["status", str(tmp_path)]) == 0
        return capsys.readouterr().out

    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with stabkit.Monitor(model, optimizer, tmp_path / "mine") as monitor:
        model(torch.ones(4, 3)).sum().backward()
        optimizer.step()
        monitor.flush()
        assert status() == "running      mine\n"
    assert status() == "done         mine  unknown  step 1\n"

    def fails() -> None:
        with stabkit.Monitor(model, optimizer, tmp_path / "mine", first_step=1):
            optimizer.step()
            raise ZeroDivisionError("by hand")

    with pytest.raises(ZeroDivisionError):
        fails()
    assert status() == "failed       mine  step 2  (ZeroDivisionError: by hand)\n"


class Stopped(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (Stopped("by hand"), "failed", "Stopped: by hand"),
        (KeyboardInterrupt(), "preempted", "KeyboardInterrupt"),
        (SystemExit(2), "failed", "SystemExit: 2"),
        (SystemExit(0), "done", None),
        (StopIteration(), "done", None),
    ],
)
@pytest.mark.parametrize("retried", [False, True])
def test_a_monitor_that_is_closed_on_the_way_out_says_why(
    tmp_path: Path, error: BaseException, state: str, reason: str | None, retried: bool
) -> None:
    """In a `finally`; and a training that an earlier failure began is not failed for that."""

    def train(folder: Path, fails: bool) -> None:
        toy = Toy()
        monitor = toy.monitor(folder)
        try:
            toy.steps(3, monitor)
            if fails:
                raise error
        finally:
            monitor.close()

    try:
        train(tmp_path / "first", True)
    except BaseException:
        if retried:
            train(tmp_path / "second", False)
    first = stabkit.open_run(tmp_path / "first").status()
    assert first is not None
    assert (first.state, first.reason) == (state, reason)
    if retried:
        second = stabkit.open_run(tmp_path / "second").status()
        assert second is not None
        assert (second.state, second.reason) == ("done", None)


def test_an_optimizer_of_another_model_is_refused(tmp_path: Path) -> None:
    optimizer = torch.optim.SGD(nn.Linear(3, 2).parameters(), lr=0.1)
    with pytest.raises(ValueError, match="none of the optimizer's parameters is one of the model"):
        stabkit.Monitor(nn.Linear(3, 2), optimizer, tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_evaluations_take_whatever_holds_classes(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with stabkit.Monitor(model, optimizer, tmp_path) as monitor:
        monitor.on("dip", print)
        tokens = torch.tensor([[0, 1], [2, 3]])
        assert monitor.log_eval(0, "knn_heldout", tokens, tokens.clone().fill_(1)) == 0.25
        assert monitor.log_eval(1, "knn_heldout", [1, 2, 3, 4], np.array([1, 2, 0, 0])) == 0.5
        with pytest.raises(ValueError, match=r"predicted \[2, 3\] and labels \[2\] must be"):
            monitor.log_eval(2, "knn_heldout", torch.ones(2, 3), torch.ones(2))
    run = stabkit.open_run(tmp_path)
    correct = run.correct("knn_heldout")
    assert correct is not None
    assert correct.tolist() == [[False, True, False, False], [True, True, False, False]]
    assert run.log_entries() == []


def test_an_evaluation_is_of_the_present_step_unless_it_says_another(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    right = torch.ones(4, dtype=torch.int64)
    with stabkit.Monitor(model, optimizer, tmp_path) as monitor:
        monitor.log_eval("val_acc", right, right, chance=0.5)
        for _ in range(3):
            model(torch.ones(4, 3)).sum().backward()
            optimizer.step()
        assert monitor.log_eval("val_acc", [1, 1, 0, 0], right) == 0.5
        monitor.log_eval("val_acc", right, right, step=7)
        monitor.log_eval(np.int64(9), "val_acc", right, right)  # the older order
        monitor.log_eval("test", predicted=right, labels=right)
        monitor.log_accuracy("top1", 0.25, n=40, chance=0.1)
        monitor.log_accuracy("top1", torch.tensor(0.5), step=5)
    run = stabkit.open_run(tmp_path)
    columns = ["step", "metric", "value", "n", "chance"]
    rows = run.evals()[columns].astype({"metric": str}).fillna(-1.0).to_numpy().tolist()
    assert rows == [
        [0, "val_acc", 1.0, 4, 0.5],
        [3, "val_acc", 0.5, 4, -1.0],
        [3, "test", 1.0, 4, -1.0],
        [3, "top1", 0.25, 40, 0.1],
        [5, "top1", 0.5, 0, -1.0],
        [7, "val_acc", 1.0, 4, -1.0],
        [9, "val_acc", 1.0, 4, -1.0],
    ]
    assert run.correct("top1") is None
    assert run.log_entries() == []


def test_an_evaluation_that_is_none_is_refused(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    right = torch.ones(4, dtype=torch.int64)
    with stabkit.Monitor(model, optimizer, tmp_path) as monitor:
        with pytest.raises(TypeError, match=r"must be a name such as 'val_acc', got int"):
            monitor.log_eval(3, right, right)
        with pytest.raises(TypeError, match=r"the metric must be a name .*, got Tensor"):
            monitor.log_eval(3, right, right, "val_acc")
        with pytest.raises(TypeError, match=r"step must be a whole number, got 1\.5"):
            monitor.log_eval("val_acc", right, right, step=1.5)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"give \(metric, predicted, labels"):
            monitor.log_eval(3, "val_acc", right, right, step=4)
        with pytest.raises(ValueError, match=r"step must be from 0 to .*, got -1"):
            monitor.log_eval("val_acc", right, right, step=-1)
        with pytest.raises(ValueError, match="chance must be a share from 0 to 1, got 10; 10 % is"):
            monitor.log_eval("val_acc", right, right, chance=10)
        with pytest.raises(ValueError, match=r"from 0 to 1, got 83.1; 83.1 % is 0.831"):
            monitor.log_accuracy("val_acc", 83.1)
        with pytest.raises(ValueError, match="accuracy must be a share from 0 to 1, got nan"):
            monitor.log_accuracy("val_acc", math.nan)
        with pytest.raises(ValueError, match=r"n must be from 1 to 2,147,483,647, got 0"):
            monitor.log_accuracy("val_acc", 0.5, n=0)
        with pytest.raises(ValueError, match=r"step must be from 0 to .*, got 1000"):
            monitor.log_accuracy("val_acc", 0.5, step=10**20)
        for n in (10.7, True, "3"):
            with pytest.raises(TypeError, match=f"n must be a whole number, got {n!r}"):
                monitor.log_accuracy("val_acc", 0.5, n=n)  # type: ignore[arg-type]
        for accuracy in (None, "x"):
            with pytest.raises(TypeError, match="accuracy must be a share from 0 to 1, got"):
                monitor.log_accuracy("val_acc", accuracy)  # type: ignore[arg-type]
        for classes in (None, ["cat"]):
            with pytest.raises(TypeError, match="predicted must hold the class of each sample"):
                monitor.log_eval("val_acc", classes, classes)
        with pytest.raises(TypeError, match=r"predicted .*, got the number 83\.1; an acc"):
            monitor.log_eval("val_acc", 83.1, 100)
        with pytest.raises(TypeError, match=r"labels .*, got the number 3; an accuracy goes to"):
            monitor.log_eval("val_acc", [3], torch.tensor(3))
    assert not (tmp_path / "evals").exists()


def test_values_without_a_name_are_refused_with_what_to_write(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    message = r"log: values have names: log\(loss=\.\.\.\), or log\(\*\*values\) .*; got "
    with stabkit.Monitor(model, optimizer, tmp_path) as monitor:
        with pytest.raises(TypeError, match=message + "dict"):
            monitor.log({"loss": 1.0})  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=message + "Tensor"):
            monitor.log(torch.ones(()))  # type: ignore[arg-type]


def test_batches_of_an_evaluation_that_are_logged_one_by_one_are_told(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with stabkit.Monitor(model, optimizer, tmp_path) as monitor:
        for batch in range(3):
            monitor.log_eval("val_acc", torch.full((4,), batch), torch.zeros(4))
            monitor.log_eval("other", torch.zeros(4), torch.zeros(4), step=batch)
    run = stabkit.open_run(tmp_path)
    assert run.evals("val_acc")["value"].tolist() == [1.0]  # the first
    assert run.evals("other")["step"].tolist() == [0, 1, 2]
    (event,) = run.log_entries()
    assert event["reason"].startswith("log_eval: val_acc was evaluated twice after one step")


def test_a_loop_may_change_its_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    toy = Toy()
    with toy.monitor(Path("run")) as monitor:
        toy.steps(5, monitor)
        monkeypatch.chdir(tmp_path / "elsewhere")
        toy.steps(5, monitor)
    assert_whole(tmp_path / "run", toy)


def test_an_accuracy_may_exceed_one_by_its_rounding(tmp_path: Path) -> None:
    toy = Toy()
    with toy.monitor(tmp_path) as monitor:
        monitor.log_accuracy("val_acc", float(np.float32(1) + np.float32(2e-7)))
        with pytest.raises(ValueError, match="a share from 0 to 1"):
            monitor.log_accuracy("val_acc", 1.0001)
    assert stabkit.open_run(tmp_path).evals("val_acc")["value"].tolist() == [1.0]


def test_an_evaluation_before_the_checkpoint_is_kept_and_one_made_again_counts_once(
    tmp_path: Path,
) -> None:
    toy = Toy()
    right = torch.arange(10) % 2
    with toy.monitor(tmp_path) as monitor:
        for _ in range(3):
            toy.steps(2, monitor)
            monitor.log_eval("val_acc", right, right)
    for again in (False, True):
        with toy.monitor(tmp_path, first_step=4) as monitor:
            if again:
                monitor.log_eval("val_acc", right, right)
            toy.steps(2, monitor)
            monitor.log_eval("val_acc", right, right)
        assert stabkit.open_run(tmp_path).evals("val_acc")["step"].tolist() == [2, 4, 6]
    with toy.monitor(tmp_path, first_step=0) as monitor:
        toy.steps(2, monitor)
    assert stabkit.open_run(tmp_path).evals("val_acc").empty


def test_a_logged_value_comes_before_the_monitors_own_at_its_step_only(tmp_path: Path) -> None:
    toy = Toy()
    with toy.monitor(tmp_path, flush_every=5) as monitor:
        for step in range(10):
            toy.steps(1, monitor)
            if step == 7:
                monitor.log(lr=7.0, grad_norm_total=5.0, nonfinite_layers=0.5)
    run = stabkit.open_run(tmp_path)
    for name, value in (("lr", 7.0), ("grad_norm_total", 5.0), ("nonfinite_layers", 0.5)):
        series = run.scalar(name)
        assert series.index.tolist() == list(range(10))
        assert np.flatnonzero(series == value).tolist() == [7]
