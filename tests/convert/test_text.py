"""Text logs in the forms that training loops print. All values are made up."""

import math
from pathlib import Path

import pytest

from stabkit.cli import main
from stabkit.convert.convert import convert
from stabkit.convert.pairs import pairs_of
from stabkit.convert.series import ConvertError
from stabkit.convert.spelling import unwrapped
from tests.convert.conftest import converted

FORMS = {
    "moco": "Epoch: [{e}][ {i}/100]\tTime  0.3 ( 0.33)\tLoss {loss:.4e} (9.0)\tAcc@1   0.1 (  0.0)",
    "megatron": " iteration {n:8d}/   10000 | consumed samples: 64 | elapsed time per iteration "
    "(ms): 312.1 | lm loss: {loss:.6E} | grad norm: 0.294 |",
    "nanogpt": "iter {n}: loss {loss:.4f}, time 12.34ms, mfu 3.20%",
    "llmc": "s:{n} trl:{loss:.4f} lr:0.001 norm:0.5",
    "olmo": "[2025-12-11 00:25:55] INFO [train:10] [step={n}/2003,epoch=0]\n"
    "    train/CrossEntropyLoss={loss:.3f}\n    optim/total_grad_norm=0.51",
    "big_vision": "I1129 10:00:00.123456 140 utils.py:1010] \x1b[35m[{n}]\x1b[0m training_loss = "
    "{loss:.4f}\nI1129 10:00:00.123456 140 utils.py:1010] \x1b[35m[{n}]\x1b[0m l2_params = 3.5",
    "big_vision, plain": "[{n}] training_loss = {loss:.4f}\n[{n}] global_schedule = 0.5",
    "mmengine": "06/05 20:09:41 - mmengine - INFO - Epoch(train)  [{e}][{i}/100]  lr: 1.0e-03  "
    "eta: 0:12:30  loss: {loss:.4f}",
    "dict": "{{'loss': {loss:.4f}, 'grad_norm': 1.5, 'step': {n}}}",
    "prefix": '2024-01-01 00:00:00 | INFO | train | {{"num_updates": {n}, "loss": "{loss:.4f}"}}',
    "swin": "[2021-01-01 00:00:00 swin](main.py 9): INFO Train: [{e}/300][{i}/100]\teta 0:10:00 "
    "lr 0.0001\ttime 0.5 (0.5)\tloss {loss:.4f} (6.9)\tgrad_norm 1.2 (1.3)\tmem 1000MB",
    "dino": "Epoch: [{e}/100]  [  {i}/100]  eta: 0:10:00  loss: {loss:.4f} (6.9)  lr: 0.1 (0.1)",
    "timm": "Train: {e} [   {i}/100 (  0%)]  Loss: {loss:.4f} (6.97)  Time: 0.5s,  100.0/s",
    "mnist": "Train Epoch: {e} [{i}/100 (0%)]\tLoss: {loss:.6f}",
    "tutorial": "Epoch [{e}/5], Step [{i}/100], Loss: {loss:.4f}",
    "tqdm": "Epoch {e}:  50%|##   | {i}/100 [00:10<00:10,  9.50it/s, loss={loss:.4f}, v_num=0]",
    "dinov2": "I20230101 00:00:00 12 dinov2 helpers.py:102] Training  [{n}/12500]  eta: 1 day, "
    "0:00:00  lr: 0.0001 (0.0001)  total_loss: {loss:.4f} (10.1)  time: 0.5",
    "mmseg": "2023-01-01 00:00:00,000 - mmseg - INFO - Iter [{n}/20000]\tlr: 1.000e-02, eta: "
    "1:00:00, time: 0.5, memory: 1000, loss: {loss:.4f}",
    "mmengine by iterations": "2023/06/05 20:10:13 - mmengine - INFO - Iter(train) [  {n}/20000]  "
    "lr: 1.0000e-02  eta: 1:00:00  loss: {loss:.4f}",
    "torchtitan": "[rank0]:2024-01-01 00:00:00,000 - root - INFO - step: {n}  loss: {loss:.4f}  "
    "grad_norm:  1.5000  memory: 10.00GiB(12%)  tps: 1,000",
    "torchtitan, in color": "[titan] 2025-01-01 00:00:00,000 - root - INFO - \x1b[31mstep: {n:2d}  "
    "\x1b[32mloss: {loss:8.4f}  \x1b[38;5;208mgrad_norm:  1.5000  \x1b[39mtps: 1,000\x1b[0m",
    "llmc, later": "step  {n}/19560 | loss {loss:.6f} (+nanz)| norm 0.5 (+nanz)| lr 3.00e-04 | "
    "288.50 ms | 54.0% bf16 MFU | 1820000 tok/s",
    "fairseq": "2020-01-01 00:00:00 | INFO | train_inner | epoch 001:  {n} / 1251 loss={loss:.3f}, "
    "ppl=10.0, ups=1.0, num_updates={n}, lr=1e-05, gnorm=2.5, wall=10",
    "detectron2": "[12/21 21:00:41 d2.utils.events]:  eta: 1:00:00  iter: {n}  total_loss: "
    "{loss:.4f}  loss_cls: 0.5  time: 0.5  lr: 0.001  max_mem: 1000M",
    "dict with nan": "{{'loss': {loss:.4f}, 'grad_norm': nan, 'step': {n}}}",
    "named": "Step {n} train loss = {loss:.4f} val acc = 0.5",
    "tensor": "step {n} loss: tensor({loss:.4f}, device='cuda:0', grad_fn=<NllLossBackward0>)",
    "dict of tensors": "{{'step': {n}, 'loss': tensor({loss:.4f}), 'lr': np.float64(0.1)}}",
    "array": "step={n} loss=Array([{loss:.4f}], dtype=float32) lr=jnp.float32(1e-4)",
}
LOSS = {
    "moco": "Loss", "megatron": "lm loss", "llmc": "trl", "olmo": "train/CrossEntropyLoss",
    "big_vision": "training_loss", "big_vision, plain": "training_loss",
    "named": "train loss", "timm": "Loss", "mnist": "Loss", "tutorial": "Loss",
    "dinov2": "total_loss", "detectron2": "total_loss",
}  # fmt: skip


@pytest.mark.parametrize("bad", [{}, {200: math.nan, 250: math.inf}])
@pytest.mark.parametrize("form", FORMS)
def test_losses_and_steps_are_read(
    form: str, bad: dict[int, float], tmp_path: Path, out: Path
) -> None:
    losses = {n: 9 - n / 100 for n in range(0, 300, 50)} | bad
    lines = [
        FORMS[form].format(e=n // 100, i=n % 100, n=n, loss=loss) for n, loss in losses.items()
    ]
    (tmp_path / "train.log").write_text("Namespace(lr=0.1)\n" + "\n".join(lines) + "\nDone.\n")
    run = converted(tmp_path / "train.log", out)
    assert run.scalar(LOSS.get(form, "loss")).to_dict() == pytest.approx(losses, nan_ok=True)
    notes = run.dir.read_meta()["converted"]["notes"]
    assert any("2 lines left out that name no step" in note for note in notes)


def test_an_evaluation_has_no_steps_of_its_own(tmp_path: Path, out: Path) -> None:
    lines = [f"Epoch: [{e}][ {i}/20]\tLoss {5 - e}" for e in range(3) for i in (0, 10)]
    lines[2:2] = ["Test: [ 0/50]\tLoss 8.0", "Test: [10/50]\tLoss 8.0", " * Acc@1 31.5"]
    (tmp_path / "train.log").write_text("\n".join(lines))
    run = converted(tmp_path / "train.log", out)
    assert run.scalar("Loss").max() == 5
    assert run.scalar("Loss").index.tolist() == [0, 10, 20, 30, 40, 50]
    assert run.evals("test/Acc@1")["value"].tolist() == pytest.approx([0.315])
    assert run.evals("test/Acc@1")["step"].tolist() == [10]  # the last step of training before it


def test_epochs_that_count_from_one(tmp_path: Path, out: Path) -> None:
    lines = [f"Epoch [{e}/3], Step [{i}/200], Loss: {e}" for e in (1, 2, 3) for i in (100, 200)]
    (tmp_path / "train.log").write_text("\n".join(lines))
    run = converted(tmp_path / "train.log", out)
    assert run.scalar("Loss").index.tolist() == [100, 200, 300, 400, 500, 600]


@pytest.mark.parametrize("style", ["mmcv", "mmengine"])
def test_evaluations_of_mmcv_and_mmengine(style: str, tmp_path: Path, out: Path) -> None:
    lines = ["    dict(type='LinearLR', begin=0, end=4, step=1),", "    max_epochs=3, lr=0.1"]
    for e in (1, 2, 3):
        lines += [f"2023/06/05 20:10:1{i} - x - INFO - Epoch(train)   [{e}][{i}/6]  loss: {9 - e}"
                  for i in (3, 6)]  # fmt: skip
        if style == "mmcv":
            lines += [f"2023-02-06 17:28:59,592 - x - INFO - Epoch(val) [{e}][79]\ttop-1: {e}0.5"]
        else:
            lines += [f"2023/06/05 20:10:20 - x - INFO - Epoch(val) [{e}][5/6]    eta: 0:00:01  "
                      "time: 1.4  data_time: 1.3", f"2023/06/05 20:10:20 - x - INFO - Epoch(val) "
                      f"[{e}][6/6]    top-1: {e}0.5  time: 1.2"]  # fmt: skip
    (tmp_path / "train.log").write_text("\n".join(lines))
    run = converted(tmp_path / "train.log", out)
    assert run.scalar("loss").index.tolist() == [3, 6, 9, 12, 15, 18]
    assert run.evals("val/top-1")["step"].tolist() == [6, 12, 18]
    assert run.evals("val/top-1")["value"].tolist() == pytest.approx([0.105, 0.205, 0.305])
    assert set(run.scalars()["name"]) == {"loss", "epoch"}


def test_lines_below_a_headline(tmp_path: Path, out: Path) -> None:
    """PyTorch's tutorials and Keras: the epoch stands on a line of its own."""
    blocks = [
        f"Epoch {e}/24\n----------\ntrain Loss: {5 - e} Acc: 0.7\nval Loss: 2.5 Acc: 0.{e}\n"
        for e in range(5)
    ]
    (tmp_path / "torch.log").write_text("\n".join(blocks))
    run = converted(tmp_path / "torch.log", out)
    assert run.scalar("train Loss").to_dict() == {e: 5 - e for e in range(5)}
    assert run.evals("val/Acc")["value"].tolist() == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert set(run.evals()["metric"]) == {"val/Acc"}
    blocks = [
        f"Epoch {e}/9\n  1/200 [....] - ETA: 9:00 - loss: 9\r200/200 [====] - 5s 3ms/step - loss: "
        f"{5 - e} - accuracy: 0.9 - val_loss: 2.5 - val_accuracy: 0.{e}"
        for e in range(1, 6)
    ]
    (tmp_path / "keras.log").write_text("\n".join(blocks))
    run = converted(tmp_path / "keras.log", out.with_name("keras"))
    assert run.scalar("loss").to_dict()[200] == 4
    assert run.scalar("loss").index.tolist() == [1, 200, 201, 400, 401, 600, 601, 800, 801, 1000]
    assert run.evals("val_accuracy")["step"].tolist() == [200, 400, 600, 800, 1000]


def test_two_names_of_one_step(tmp_path: Path, out: Path) -> None:
    """NanoGPT prints evaluations with `step` and training with `iter`."""
    lines = []
    for n in range(100):
        lines += [f"step {n}: train loss {5 - n / 50}, val loss 3.0"] * (n % 25 == 0)
        lines += [f"iter {n}: loss {5 - n / 50:.2f}, time 12.34ms, mfu 3.20%"]
    (tmp_path / "train.log").write_text("\n".join(lines))
    run = converted(tmp_path / "train.log", out)
    assert run.scalar("loss").index.tolist() == list(range(100))
    assert run.scalar("val loss").index.tolist() == [0, 25, 50, 75]


@pytest.mark.parametrize("phase", ["[Val]", "Val:", "(test)", "  [Validation]"])
def test_an_evaluation_that_names_its_epoch_takes_no_value_of_training(
    phase: str, tmp_path: Path, out: Path
) -> None:
    log = tmp_path / "train.log"
    lines = []
    for epoch in range(12):
        lines.append(f"[Train] Epoch {epoch}: loss {3 - epoch / 10:.2f} acc {40 + epoch}.0%")
        lines.append(f"{phase} Epoch {epoch}: loss {4 - epoch / 10:.2f} acc {30 + epoch}.0%")
    log.write_text("\n".join(lines))
    run = converted(log, out)
    word = phase.strip(" [](:)").lower()
    scalars = run.scalars()
    for name, first in (("loss", 3), (f"{word}/loss", 4)):
        values = scalars.loc[scalars["name"] == name, "value"]
        assert values.tolist() == pytest.approx([first - epoch / 10 for epoch in range(12)])
    evals = run.evals()
    assert evals.loc[evals["metric"] == f"{word}/acc", "value"].iloc[-1] == pytest.approx(0.41)


def test_the_code_before_a_log_is_left_out(tmp_path: Path, out: Path) -> None:
    code = [f"x{i} = model_{i}(y)  # of 3" for i in range(1500)] + ["self.step = 0", "steps = 1000"]
    lines = [f"step:{n}/100 train_loss:{5 - n / 50} train_time:79ms" for n in range(100)]
    (tmp_path / "train.txt").write_text("\n".join(code + lines))
    run = converted(tmp_path / "train.txt", out)
    assert run.scalar("train_loss").index.tolist() == list(range(100))
    assert set(run.scalars()["name"]) == {"train_loss", "train_time"}


def test_a_summary_of_the_epoch_stands_at_its_last_step(tmp_path: Path, out: Path) -> None:
    lines = []
    for e in range(3):
        lines += [f"epoch {e} step {e * 10 + i} loss 2.5" for i in range(10)]
        lines += [f"epoch {e} val_acc 0.{e + 1}", "Validation accuracy: 0.5"]
    (tmp_path / "train.log").write_text("\n".join(lines))
    run = converted(tmp_path / "train.log", out)
    assert run.evals("val_acc")["step"].tolist() == [9, 19, 29]
    assert run.evals("Validation accuracy")["step"].tolist() == [9, 19, 29]
    assert run.scalar("loss").size == 30


def test_lines_without_a_step_are_counted_where_asked(tmp_path: Path, out: Path) -> None:
    (tmp_path / "train.log").write_text("".join(f"loss: {9 - i} lr: 0.1\n" for i in range(9)))
    with pytest.raises(ConvertError):
        convert(tmp_path / "train.log", out)
    run = converted(tmp_path / "train.log", out, row_step=True)
    assert run.scalar("loss").to_dict() == {i: 9 - i for i in range(9)}


def test_the_command_that_counts_lines_is_in_the_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "train.log"
    log.write_text("".join(f"loss: {9 - i}\n" for i in range(9)))
    assert main(["analyze", str(log)]) == 2
    command = f"stabkit convert {log} -o runs/train --row-step"
    assert capsys.readouterr().err.endswith(f"Try: {command}\n")


def bars(title: str, size: int, value: str, steps: range) -> list[str]:
    form = "{}{:3d}%|##  | {}/{} [00:01<?, 9.5it/s{}]"
    return [form.format(title, i * 100 // size, i, size, value) for i in steps]


def test_a_bar_without_an_epoch_counts_steps(tmp_path: Path, out: Path) -> None:
    lines = []
    for e in range(3):
        lines += bars("", 40, ", loss=5.0", range(1)) * e  # not yet of this epoch
        lines += bars("train loss 0.5: ", 40, f", loss={4 - e}", range(5, 41, 5))
        lines += bars("Validating: ", 40, ", loss=99", range(1, 5))
        lines += bars("", 7, ", loss=99", range(1, 7)) + bars("Map: ", 9, "", range(1, 3))
        lines += [f"val acc: 0.{e + 5}"]
    (tmp_path / "train.log").write_text("\r".join(lines))
    run = converted(tmp_path / "train.log", out)
    losses = {40 * e + i: 4.0 - e for e in range(3) for i in range(5, 41, 5)}
    assert run.scalar("loss").to_dict() == losses | {40: 5.0, 80: 5.0}
    assert run.evals()["step"].tolist() == [40, 80, 120]
    notes = run.dir.read_meta()["converted"]["notes"]
    assert [note for note in notes if "progress" in note] == [
        "12 lines of progress within an evaluation left out",
        "18 lines left out of progress bars of another length than 40, that of the first",
    ]


def test_a_bar_that_begins_again_before_its_end_is_another_attempt(
    tmp_path: Path, out: Path
) -> None:
    lines = bars("", 40, ", loss=3.0", range(1, 30)) + bars("", 40, ", loss=2.0", range(20, 41))
    (tmp_path / "train.log").write_text("\r".join(lines))
    losses = converted(tmp_path / "train.log", out).scalar("loss").to_dict()
    assert losses == {i: 3.0 if i < 20 else 2.0 for i in range(1, 41)}


def test_a_bar_below_a_headline_takes_the_lines_behind_it(tmp_path: Path, out: Path) -> None:
    lines = []
    for e in range(1, 5):
        lines += [f"Epoch {e}/4", *bars("", 40, f", loss={5 - e}", range(10, 41, 10))]
        lines += [f"Train error: 0.{e}"]
    (tmp_path / "train.log").write_text("\n".join(lines))
    run = converted(tmp_path / "train.log", out)
    assert run.scalar("loss").index.tolist() == list(range(10, 161, 10))
    assert run.scalar("Train error").to_dict() == {40 * e: e / 10 for e in range(1, 5)}


def test_text_without_numbers_is_refused_in_its_own_words(tmp_path: Path, out: Path) -> None:
    (tmp_path / "train.log").write_text("Loading the model\nTraceback (most recent call last):\n")
    with pytest.raises(ConvertError, match="holds no numbers that have names"):
        convert(tmp_path / "train.log", out)


@pytest.mark.parametrize(
    ("line", "pairs"),
    [
        ("iter 5: loss 0.5, time 12.3ms", {"iter": 5, "loss": 0.5, "time": 12.3}),
        ("step 1,000 | loss: nan | lr: 1e-4", {"step": "1,000", "lr": 1e-4}),
        ("(main.py 214): INFO step 3 acc 7.5% mem 2K", {"step": 3, "acc": "7.5%", "mem": 2000}),
        ("[12:30:05] eta: 1:02:03 step: 7 loss: -inf", {"step": 7, "loss": float("-inf")}),
        ("resnet50 v2.1 loaded from step_100.pt", {}),
        ("Test set: Average loss: 0.05, Accuracy: 98/100 (98%)", {"Accuracy": 0.98}),
        ("Dec 11 00:25:55 host: step: 4 acc: .5", {"step": 4, "acc": 0.5}),
    ],
)
def test_pairs_of_a_line(line: str, pairs: dict[str, float | str]) -> None:
    found = pairs_of(line)
    assert {name: found.get(name) for name in pairs} == pairs
    if not pairs:
        assert found == {}


def test_a_few_bytes_of_another_encoding(tmp_path: Path, out: Path) -> None:
    lines = ["Training caf\u00e9", *(f"step {i} loss {9 - i / 10}" for i in range(20))]
    (tmp_path / "train.log").write_bytes("\n".join(lines).encode("latin-1"))
    assert converted(tmp_path / "train.log", out).scalar("loss").size == 20


def test_batches_below_the_headline_of_an_epoch_and_the_block_of_a_test(
    tmp_path: Path, out: Path
) -> None:
    (tmp_path / "train.log").write_text(
        "".join(
            f"Epoch {e}\n-------------------------------\n"
            + "".join(f"loss: {9 - e}.{at}  [{6400 * at:>5d}/60000]\n" for at in range(3))
            + f"Test Error: \n Accuracy: {10 * e}.5%, Avg loss: {8 - e}.5 \n\n"
            for e in range(1, 6)
        )
        + "Done!\n"
    )
    run = converted(tmp_path / "train.log", out)
    steps = [60000 * (e - 1) + 6400 * at for e in range(1, 6) for at in range(3)]
    assert run.scalar("loss").to_dict() == dict(
        zip(steps, [9 - e + at / 10 for e in range(1, 6) for at in range(3)], strict=True)
    )
    assert run.evals("test/Accuracy")["value"].tolist() == pytest.approx(
        [(10 * e + 0.5) / 100 for e in range(1, 6)]
    )


def test_a_bar_of_rich_names_epoch_and_batch(tmp_path: Path, out: Path) -> None:
    (tmp_path / "train.log").write_text(
        "\r".join(
            f"Epoch {e}/2 ━━━━━━━╸ {i}/4 0:00:01 • 0:00:02 12.3it/s v_num: 0 train_loss: {e}.{i}"
            for e in range(3)
            for i in range(1, 5)
        )
    )
    steps = converted(tmp_path / "train.log", out).scalar("train_loss").to_dict()
    assert steps == {4 * e + i: e + i / 10 for e in range(3) for i in range(1, 5)}


def test_a_tensor_of_several_numbers_is_no_number() -> None:
    assert unwrapped("loss tensor([2.5, 1.5]) and tensor(2.5, 1.5)") == (
        "loss tensor([2.5, 1.5]) and tensor(2.5, 1.5)"
    )


@pytest.mark.parametrize(
    "text", ["tensor(" + "1" * 10**6, "tensor(" + " " * 10**6, "a." * 10**5 + "("], ids=range(3)
)
def test_a_long_line_is_searched_for_tensors_at_once(text: str) -> None:
    assert unwrapped(text) == text  # with backtracking this takes minutes


def test_bars_and_batches_of_an_evaluation_that_name_an_epoch_are_no_training(
    tmp_path: Path, out: Path
) -> None:
    lines = []
    for epoch in range(3):
        lines += [f"Train Epoch {epoch}: 50%|##  | {i}/4 [00:01<?, loss=2.5]" for i in range(1, 5)]
        lines += [f"Val Epoch {epoch}: 50%|##  | {i}/2 [00:01<?, loss=9.5]" for i in (1, 2)]
    (tmp_path / "log").write_text("\n".join(lines))
    run = converted(tmp_path / "log", out)
    assert run.scalar("loss").to_dict() == dict.fromkeys(range(1, 13), 2.5)


def test_the_name_of_a_file_before_an_epoch_makes_no_evaluation(tmp_path: Path, out: Path) -> None:
    lines = [f"INFO eval.py:9 Epoch: [0][{i}/40] loss 0.5" for i in range(30)]
    (tmp_path / "log").write_text("\n".join(lines))
    assert converted(tmp_path / "log", out).scalar("loss").size == 30


def test_words_before_a_step_do_not_hide_it(tmp_path: Path, out: Path) -> None:
    lines = [f"Training step {i} loss 2.5" for i in range(20)]
    (tmp_path / "steps").write_text("\n".join(lines))
    assert converted(tmp_path / "steps", out).scalar("loss").size == 20
    lines = []
    for epoch in range(1, 11):
        lines += [f"Train Epoch {epoch}: loss=1.5", f"Val Epoch {epoch}: loss=9.5 acc=0.25"]
    (tmp_path / "epochs").write_text("\n".join(lines))
    run = converted(tmp_path / "epochs", tmp_path / "second")
    assert run.scalar("loss").tolist() == [1.5] * 10
    assert run.scalar("val/loss").tolist() == [9.5] * 10
    assert run.evals("val/acc")["value"].tolist() == [0.25] * 10
