"""benchmarks/overhead/run.py measures what it says it does; no time is asserted."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[1]

DEAF = """
import sys
from benchmarks.overhead import ours, run

class Deaf(ours.Stabkit):
    def attach(self):
        super().attach()
        self.training.optimizer.register_step_post_hook(self.let_go)

    def let_go(self, *_):
        if self.training.step == 5:
            self.monitor.close()

class Meddling(ours.Stabkit):
    def after_step(self, loss, step):
        super().after_step(loss, step)
        self.training.model[-1].bias.data.add_(1e-3)

run.SUBJECTS |= {"deaf": Deaf, "meddling": Meddling}
sys.argv = ["", "--quick", "--models", "mlp", "--subjects", "deaf", "meddling"]
run.main()
"""


def run(*command: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    folders = [str(ROOT), *sys.path] if path is None else [str(path), str(ROOT), *sys.path]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": "1"}
    command = (sys.executable, *command)
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


def test_every_subject_was_attached_and_its_values_are_on_disk(tmp_path: Path) -> None:
    (tmp_path / "wandb.py").write_text("raise ModuleNotFoundError('none', name='wandb')")
    subjects = ["stabkit", "tensorboard", "wandb-gradients"]
    words = ["--quick", "--models", "mlp", "--subjects", *subjects]
    done = run("-m", "benchmarks.overhead.run", *words, path=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = dict(re.findall(r"^\| (\S+) \| (.+) \|$", done.stdout, re.MULTILINE))
    assert rows["wandb-gradients"].startswith("wandb is not installed")
    for name, waits in ("stabkit", 0), ("tensorboard", 8):  # of 3 layers, and of the loss
        cells = rows[name].split(" | ")
        assert int(cells[6]) >= 4  # values a step, counted on disk
        assert int(cells[5].split()[0]) == waits


def test_a_subject_that_detaches_or_changes_the_training_is_not_valid() -> None:
    done = run("-c", DEAF)
    assert done.returncode == 1, done.stderr
    rows = dict(re.findall(r"^\| (\S+) \| (.+?) \|", done.stdout, re.MULTILINE))
    assert rows["deaf"].startswith("NOT VALID: it recorded ")
    assert "other weights" in rows["meddling"]
