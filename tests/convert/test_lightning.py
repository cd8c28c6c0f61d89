import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from stabkit.convert.convert import convert
from stabkit.convert.series import ConvertError
from tests.convert.conftest import converted

BY_HAND = """epoch,grad_2.0_norm/net.0.weight,loss_epoch,loss_step,step,val_acc
,,,2.0,0,
,3.0,,,0,
0,,,,4,0.25
,,,1.0,5,
,4.0,,,5,
0,,1.5,,9,
1,,,,9,0.5
"""

REAL = """
import sys, torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import grad_norm

class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1))
    def training_step(self, batch, _):
        loss = self.net(batch).square().mean()
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss
    def validation_step(self, batch, _):
        self.log("val_acc", 0.25 + 0.1 * self.current_epoch)
    def on_before_optimizer_step(self, _):
        self.log_dict(grad_norm(self, 2))
        torch.save([p.grad for p in self.parameters()], f"{sys.argv[1]}/{self.global_step}.pt")
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)

torch.manual_seed(0)
data = torch.utils.data.DataLoader(torch.randn(16, 4), batch_size=4)
Trainer(max_epochs=3, logger=CSVLogger(sys.argv[1], name="logs"), log_every_n_steps=1,
        accelerator="cpu", enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False).fit(Net(), data, data)
"""


def test_blanks_and_several_rows_a_step(tmp_path: Path, out: Path) -> None:
    (tmp_path / "version_0").mkdir()
    (tmp_path / "version_0" / "metrics.csv").write_text(BY_HAND)
    run = converted(tmp_path, out)
    assert run.dir.read_meta()["converted"]["format"] == "lightning"
    assert run.scalar("loss_step").to_dict() == {0: 2.0, 5: 1.0}
    assert run.scalar("loss_epoch").to_dict() == {9: 1.5}
    assert run.scalar("epoch").to_dict() == {4: 0.0, 9: 1.0}
    assert run.evals("val_acc")["value"].tolist() == [0.25, 0.5]
    assert run.signals()[["step", "layer", "grad_norm"]].to_numpy().tolist() == [
        [0, "net.0", 3.0], [5, "net.0", 4.0],
    ]  # fmt: skip


@pytest.mark.processes
@pytest.mark.skipif(find_spec("lightning") is None, reason="needs lightning: pip install lightning")
def test_what_lightning_itself_writes(tmp_path: Path, out: Path) -> None:
    """A real run; in a process of its own, for its warnings are not ours."""
    import torch

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", REAL, str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = converted(tmp_path / "logs", out)
    signals = run.signals()
    assert signals["layer"].unique().tolist() == ["net.0", "net.1"]
    for step in range(12):
        grads = torch.load(tmp_path / f"{step}.pt", weights_only=True)
        norms = [torch.cat([g.ravel() for g in grads[i : i + 2]]).norm().item() for i in (0, 2)]
        # torch adds squares in float32, four and more of them: a few units in the last place
        found = signals[signals["step"] == step]["grad_norm"]
        np.testing.assert_allclose(found, norms, rtol=1e-6)
    assert len(run.scalar("loss_step")) == 12
    assert len(run.scalar("loss_epoch")) == 3
    assert len(run.scalar("grad_2.0_norm_total")) == 12
    np.testing.assert_allclose(run.evals("val_acc")["value"], [0.25, 0.35, 0.45], rtol=1e-6)


def test_event_files_beside_are_a_question(tmp_path: Path, out: Path) -> None:
    (tmp_path / "metrics.csv").write_text(BY_HAND)
    (tmp_path / "events.out.tfevents.1.host").write_bytes(b"")
    with pytest.raises(ConvertError, match="choose by --format"):
        convert(tmp_path, out)
    assert converted(tmp_path, out, format="lightning").scalar("loss_step").size == 2
