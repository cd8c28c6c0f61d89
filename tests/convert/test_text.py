"""Text logs in the forms that training loops print. All values are made up."""

from pathlib import Path

import pytest

from stabkit.convert.pairs import pairs_of
from tests.convert.conftest import converted

FORMS = {
    "moco": "Epoch: [{e}][ {i}/100]\tTime  0.3 ( 0.33)\tLoss {loss:.4e} (9.0)\tAcc@1   0.1 (  0.0)",
    "megatron": " iteration {n:8d}/   10000 | consumed samples: 64 | elapsed time per iteration "
    "(ms): 312.1 | lm loss: {loss:.6E} | grad norm: 0.294 |",
    "nanogpt": "iter {n}: loss {loss:.4f}, time 12.34ms, mfu 3.20%",
    "llmc": "s:{n} trl:{loss:.4f} lr:0.001 norm:0.5",
    "olmo": "[2025-12-11 00:25:55] INFO [train:10] [step={n}/2003,epoch=0]\n"
    "    train/CrossEntropyLoss={loss:.3f}\n    optim/total_grad_norm=0.51",
    "mmengine": "06/05 20:09:41 - mmengine - INFO - Epoch(train)  [{e}][{i}/100]  lr: 1.0e-03  "
    "eta: 0:12:30  loss: {loss:.4f}",
    "dict": "{{'loss': {loss:.4f}, 'grad_norm': 1.5, 'step': {n}}}",
    "prefix": '2024-01-01 00:00:00 | INFO | train | {{"num_updates": {n}, "loss": "{loss:.4f}"}}',
    "named": "Step {n} train loss = {loss:.4f} val acc = 0.5",
}
LOSS = {
    "moco": "Loss", "megatron": "lm loss", "llmc": "trl", "olmo": "train/CrossEntropyLoss",
    "named": "train loss",
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_losses_and_steps_are_read(form: str, tmp_path: Path, out: Path) -> None:
    losses = {n: 9 - n / 100 for n in range(0, 300, 50)}
    lines = [
        FORMS[form].format(e=n // 100, i=n % 100, n=n, loss=loss) for n, loss in losses.items()
    ]
    (tmp_path / "train.log").write_text("Namespace(lr=0.1)\n" + "\n".join(lines) + "\nDone.\n")
    run = converted(tmp_path / "train.log", out)
    assert run.scalar(LOSS.get(form, "loss")).to_dict() == pytest.approx(losses)
    notes = run.dir.read_meta()["converted"]["notes"]
    assert any("2 lines left out that name no step" in note for note in notes)


def test_an_evaluation_has_no_steps_of_its_own(tmp_path: Path, out: Path) -> None:
    lines = [f"Epoch: [{e}][ {i}/20]\tLoss {5 - e}" for e in range(3) for i in (0, 10)]
    lines[2:2] = ["Test: [ 0/50]\tLoss 8.0", "Test: [10/50]\tLoss 8.0", " * Acc@1 31.5"]
    (tmp_path / "train.log").write_text("\n".join(lines))
    run = converted(tmp_path / "train.log", out)
    assert run.scalar("Loss").max() == 5
    assert run.scalar("Loss").index.tolist() == [0, 10, 20, 30, 40, 50]


@pytest.mark.parametrize(
    ("line", "pairs"),
    [
        ("iter 5: loss 0.5, time 12.3ms", {"iter": 5, "loss": 0.5, "time": 12.3}),
        ("step 1,000 | loss: nan | lr: 1e-4", {"step": 1000, "lr": 1e-4}),
        ("[12:30:05] eta: 1:02:03 step: 7 loss: -inf", {"step": 7, "loss": float("-inf")}),
        ("resnet50 v2.1 loaded from step_100.pt", {}),
        ("Dec 11 00:25:55 host: step: 4 acc: .5", {"step": 4, "acc": 0.5}),
    ],
)
def test_pairs_of_a_line(line: str, pairs: dict[str, float]) -> None:
    found = pairs_of(line)
    assert {name: found.get(name) for name in pairs} == pairs
    if not pairs:
        assert found == {}
