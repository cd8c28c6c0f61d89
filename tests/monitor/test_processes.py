"""A Monitor in scripts that end as they like, in forked and spawned processes, and in copies."""

import copy
import io
import json
import os
import pickle
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient
from torch.utils.data import DataLoader, Dataset

import stabkit
from stabkit.rundir import RunBusyError, RunDir
from tests.monitor import endings
from tests.monitor.endings import STEPS
from tests.monitor.toy import Toy, assert_whole, kinds

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int], str]:
    folder = tmp_path_factory.mktemp("endings")
    command = [sys.executable, "-W", "error", "-m", "tests.monitor.endings", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1]), done.stderr


def whole_toy(steps: int = STEPS) -> Toy:
    toy = Toy()
    toy.steps(steps)
    return toy


NOT_CLOSED = "the process ended without closing its Monitor"


@pytest.mark.parametrize(
    ("how", "code", "state", "reason"),
    [
        (endings.at_its_end, 0, "done", NOT_CLOSED),
        (endings.of_a_function, 0, "done", NOT_CLOSED),
        (endings.by_exit, 3, "failed", "SystemExit: 3"),
        (endings.by_exit_within, 3, "failed", "SystemExit: 3"),
        (endings.by_an_exception, 1, "failed", "RuntimeError: of the training"),
        (endings.by_an_exception_within_a_function, 1, "failed", "RuntimeError: of the training"),
        (
            endings.by_an_exit_after_an_exception, 1, "failed",
            "RuntimeError: of the training (SystemExit: 1)",
        ),
        (endings.by_exit_with_a_message, 1, "failed", "SystemExit: loss is nan, stopping training"),
        (endings.by_the_builtin_exit, 4, "failed", "SystemExit: 4"),
        (endings.by_raising_system_exit, 5, "done", NOT_CLOSED),
        (endings.by_exit_zero, 0, "done", NOT_CLOSED),
        (endings.by_exit_zero_within, 0, "done", None),
        (endings.after_a_caught_exit_and_exception, 0, "done", NOT_CLOSED),
        (endings.by_an_exit_that_is_caught, 0, "failed", "SystemExit: 6"),
        (endings.of_two_monitors, 1, "failed", "RuntimeError: of both trainings"),
        (endings.by_an_interrupt_within, 0, "preempted", "KeyboardInterrupt"),
        (endings.with_a_hook_of_the_users, 1, "failed", "RuntimeError: told to a hook"),
        (endings.after_its_monitor_was_closed, 7, "done", None),
        (endings.with_a_child, 0, "done", None),
    ],
)  # fmt: skip
def test_everything_is_on_disk_however_a_script_ends(
    ended: tuple[Path, dict[str, int], str], how: Any, code: int, state: str, reason: str | None
) -> None:
    folder, exits, _ = ended
    assert exits[how.__name__] == code
    assert_whole(folder / how.__name__, whole_toy())
    assert kinds(folder / how.__name__) == []
    status = RunDir(folder / how.__name__).read_status()
    assert status is not None
    assert (status.state, status.reason) == (state, reason)
    assert set(stabkit.open_run(folder / how.__name__).scalars()["name"]) == {
        "loss", "lr", "beta2", "grad_norm_total", "nonfinite_layers",
    }  # fmt: skip


LAST_LINES = {
    # the last line of a script whose main trains and leaves its Monitor open -> state
    "sys.exit(main())": "done",
    "raise SystemExit(main())": "done",
    "main(); sys.exit(1)": "failed",
    "sys.exit(main(fails=True))": "failed",
}


def test_the_last_line_of_a_script(tmp_path: Path) -> None:
    """`sys.exit(main())` looks `sys.exit` up before main begins, and the code stays unknown."""
    head = """
import os, sys
from pathlib import Path
from tests.monitor.toy import Toy
Toy().steps(1)
def main(fails=False):
    toy = Toy()
    monitor = toy.monitor(Path(f"{number}"))
    toy.steps(3, monitor)
    if fails:
        raise RuntimeError("of the training")
for number in range(%d):
    if os.fork() == 0:
        break
    os.wait()
else:
    number = -1
"""
    lines = [f"if number == {i}: {line}" for i, line in enumerate(LAST_LINES)]
    script = head % len(LAST_LINES) + "\n".join(lines)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for number, state in enumerate(LAST_LINES.values()):
        status = RunDir(tmp_path / str(number)).read_status()
        assert status is not None
        assert (number, status.state) == (number, state)


def test_nothing_is_said_but_the_scripts_own_errors(
    ended: tuple[Path, dict[str, int], str],
) -> None:
    lines = ended[2].splitlines()
    assert ended[2].count("Traceback") == 3
    assert [line for line in lines if line[:1].strip() and not line.startswith("Traceback")] == [
        *["RuntimeError: of the training"] * 2,
        "loss is nan, stopping training",
        "RuntimeError: of both trainings",
        "the user's hook: told to a hook",
    ]


def test_a_process_that_is_terminated_loses_two_intervals_at_most(
    ended: tuple[Path, dict[str, int], str],
) -> None:
    folder, exits, _ = ended
    assert exits["by_a_term_signal"] == -15
    loss = stabkit.open_run(folder / "by_a_term_signal").scalar("loss")
    assert STEPS - 2 * 2 <= len(loss) < STEPS
    assert loss.tolist() == whole_toy().losses[: len(loss)]


def test_what_a_kill_leaves_is_whole_and_the_resumed_run_is_as_if_unbroken(
    ended: tuple[Path, dict[str, int], str], tmp_path: Path
) -> None:
    folder, exits, _ = ended
    assert exits["killed_while_it_writes"] == -9
    folder = folder / "killed_while_it_writes"
    assert list((folder / "layers").glob(".*.tmp"))  # the kill came in the midst of it
    loss = stabkit.open_run(folder).scalar("loss")
    assert 12 <= len(loss) < STEPS + 12
    model, optimizer, data = torch.load(folder / "checkpoint.pt")
    toy = Toy()
    toy.model.load_state_dict(model)
    toy.optimizer.load_state_dict(optimizer)
    toy.data.set_state(data)
    with pytest.raises(ValueError, match=r"holds steps 0 to \d+ already; pass first_step="):
        toy.monitor(folder)
    with toy.monitor(folder, first_step=12) as monitor:
        toy.steps(12, monitor)
    unbroken = Toy()
    with unbroken.monitor(tmp_path) as monitor:
        unbroken.steps(24, monitor)
    assert toy.state().equal(unbroken.state())
    left, right = stabkit.open_run(folder), stabkit.open_run(tmp_path)
    assert left.signals().equals(right.signals())
    assert_whole(folder, unbroken)
    for name in ("lr", "beta2", "grad_norm_total", "nonfinite_layers"):
        assert left.scalar(name).equals(right.scalar(name)), name


# --- copies


def use(monitor: Any) -> None:
    """Everything a Monitor has for its user."""
    monitor.log(loss=1.0, tensor=torch.ones(()))
    accuracy = monitor.log_eval(3, "knn", torch.ones(3), torch.ones(3), chance=1 / 2)
    assert accuracy == 1.0
    monitor.before_clipping()
    monitor.micro_batch()
    monitor.on("nonfinite", "stop")
    assert monitor.should_stop is False
    assert monitor.step == 4
    assert monitor.layers == ["0", "2"]
    assert monitor.flush_every == 2
    assert isinstance(monitor.rundir, RunDir)
    monitor.flush()
    with monitor as same:
        assert same is monitor
    monitor.close()


@pytest.mark.parametrize("kind", ["pickle", "deepcopy", "copy", "torch.save", "twice"])
def test_a_copy_of_a_monitor_records_nothing_and_raises_nothing(tmp_path: Path, kind: str) -> None:
    toy = Toy()
    monitor = toy.monitor(tmp_path, signals=["basic", "noise"], samples_per_step=16)
    toy.steps(4, monitor)
    if kind == "pickle":
        pickled = pickle.dumps(monitor)
        assert len(pickled) < 2000  # neither the model nor its moments
        found = pickle.loads(pickled)
    elif kind == "torch.save":
        torch.save(monitor, file := io.BytesIO())
        file.seek(0)
        found = torch.load(file, weights_only=False)
    elif kind == "copy":
        found = copy.copy(monitor)
    else:
        found = copy.deepcopy(monitor)
    if kind == "twice":
        found = copy.deepcopy(found)
    use(found)
    toy.steps(4, monitor)
    monitor.close()
    assert_whole(tmp_path, toy)
    toy.assert_undisturbed()
    run = stabkit.open_run(tmp_path)
    assert run.evals().empty
    assert "tensor" not in set(run.scalars()["name"])


def test_copies_and_files_of_what_is_monitored_train_on_by_themselves(tmp_path: Path) -> None:
    toy = Toy()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    monitor = toy.monitor(tmp_path, scaler=scaler)
    toy.steps(4, monitor)
    there = (toy.model, toy.optimizer, scaler)
    torch.save(there, file := io.BytesIO())
    file.seek(0)
    for model, optimizer, its_scaler in (
        copy.deepcopy(there),
        pickle.loads(pickle.dumps(there)),
        torch.load(file, weights_only=False),
    ):
        before = model[0].weight.clone()
        assert not optimizer._optimizer_step_pre_hooks
        loss = model(torch.ones(2, 4)).sum()
        optimizer.zero_grad()
        its_scaler.scale(loss).backward()
        its_scaler.unscale_(optimizer)
        its_scaler.step(optimizer)
        its_scaler.update()
        assert not model[0].weight.equal(before)
    for state in (toy.model.state_dict(), toy.optimizer.state_dict(), scaler.state_dict()):
        torch.save(state, file := io.BytesIO())
        file.seek(0)
        torch.load(file, weights_only=True)  # nothing but tensors and plain data
    toy.steps(4, monitor)
    monitor.close()
    assert_whole(tmp_path, toy)
    toy.assert_undisturbed()


# --- other processes


class Touching(Dataset[int]):
    """Samples whose reading touches a Monitor, as a dataset that holds the whole trainer does."""

    def __init__(self, monitor: stabkit.Monitor, toy: Toy | None) -> None:
        self.monitor, self.toy = monitor, toy

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        assert torch.utils.data.get_worker_info() is not None
        if self.toy is not None:  # forked: the optimizer's hooks are there
            self.toy.steps(3, self.monitor)
        self.monitor.log(worker=1.0)
        self.monitor.flush()
        self.monitor.close()
        assert self.monitor.should_stop is False
        return index


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_loader_workers_may_touch_the_monitor(tmp_path: Path, start: str) -> None:
    toy = Toy()
    monitor = toy.monitor(tmp_path)
    toy.steps(5, monitor)
    loader = DataLoader(
        Touching(monitor, toy if start == "fork" else None),
        num_workers=2 if start == "fork" else 1,
        multiprocessing_context=start,
        persistent_workers=True,
        batch_size=None,
    )
    workers = iter(loader)
    assert sorted(workers) == [0, 1, 2, 3]
    toy.steps(5, monitor)
    monitor.close()
    assert_whole(tmp_path, toy)
    assert "worker" not in set(stabkit.open_run(tmp_path).scalars()["name"])
    # the workers live on, and have inherited the lock: it is let go of all the same
    with Toy().monitor(tmp_path, first_step=0):
        pass
    del workers, loader


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_does_not_let_go_of_the_lock(tmp_path: Path) -> None:
    rundir = RunDir(tmp_path)
    with ExitStack() as stack:
        stack.enter_context(rundir.lock())
        if (pid := os.fork()) == 0:
            stack.close()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert rundir.is_busy()
    assert not rundir.is_busy()


def test_a_folder_that_another_process_holds_is_refused(tmp_path: Path) -> None:
    holds = "import sys, fcntl; f = open(sys.argv[1], 'ab'); fcntl.flock(f, 2); print(flush=True);"
    holds += "sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", holds, str(tmp_path / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        toy = Toy()
        with pytest.raises(RunBusyError, match=f"{tmp_path}: another process is writing here"):
            toy.monitor(tmp_path)
        toy.steps(2)  # no hook was left behind
        other.communicate()
    toy.assert_undisturbed()
    with Toy().monitor(tmp_path):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "events.jsonl", "status.json"]


CELL = """
model = nn.Linear(3, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
monitor = stabkit.Monitor(model, optimizer, folder{})
for _ in range(5):
    optimizer.zero_grad()
    loss = model(torch.ones(4, 3)).sum()
    loss.backward()
    optimizer.step()
    monitor.log(loss=loss)
"""


def test_a_notebook_cell_that_is_run_again(tmp_path: Path) -> None:
    again, over = CELL.format(""), CELL.format(", first_step=0")
    refused = f"try:\n{again.replace(chr(10), chr(10) + '    ')}\nexcept ValueError as e: print(e)"
    cells = [
        f"import torch, stabkit\nfrom torch import nn\nfolder = {str(tmp_path)!r}",
        again,  # records
        refused,  # while the first Monitor is open
        over,  # closes it
        over,
        "monitor.close()",
        refused,  # when the folder holds its steps
        "import threading; print([t.name for t in threading.enumerate()].count('stabkit'))",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute(env=environment)
    outputs = ["".join(o.get("text", "") for o in cell.outputs) for cell in notebook.cells]
    assert "another Monitor of this process records there" in outputs[2]
    assert "first_step=0" in outputs[2]
    assert "holds steps 0 to 4 already; pass first_step=5" in outputs[6]
    assert outputs[7].strip() == "0"
    assert [bool(text) for text in outputs] == [False, False, True, False, False, False, True, True]
    run = stabkit.open_run(tmp_path)
    assert run.scalar("loss").index.tolist() == [0, 1, 2, 3, 4]
    assert np.unique(run.signals()["step"]).tolist() == [0, 1, 2, 3, 4]
