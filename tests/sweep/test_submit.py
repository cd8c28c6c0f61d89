"""What is submitted to SLURM, and what a second launch does about the first."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stabkit.cli import main
from stabkit.config import load_config
from stabkit.rundir import RunDir, Status
from stabkit.sweep import submit
from stabkit.sweep.sbatch import chunks, shares
from stabkit.sweep.slurm_request import merged
from stabkit.sweep.submissions import jobs_folder, note_file, read_submitted
from tests.conftest import SMALL
from tests.sweep.conftest import FakeSlurm

pytestmark = pytest.mark.processes

SWEEP = """
name: demo
base: tiny
grid: {optim.lr: [1e-3, 2e-3, 3e-3]}
slurm: {timeout_min: 60, partition: low, cpus_per_task: 3, mem_gb: 1.5}
"""
COMMAND = ["sweep", "demo.yaml", "--cluster", "slurm", *SMALL]


@pytest.fixture
def command(slurm: FakeSlurm) -> list[str]:
    Path("demo.yaml").write_text(SWEEP)
    return COMMAND


def folders() -> list[Path]:
    return sorted(path.parent for path in Path("runs/demo").glob("*/config.yaml"))


GOLDEN = """#!/bin/bash

# Parameters
#SBATCH --array=0-2%2
#SBATCH --cpus-per-task=3
#SBATCH --exclude='n[1-3] n7'
#SBATCH --gpus-per-node=2
#SBATCH --hold
#SBATCH --job-name=stabkit-demo-TOKEN
#SBATCH --mem=1536M
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --open-mode=append
#SBATCH --output='FOLDER/a b/demo/.submitit/%A_%a_0_log.out'
#SBATCH --partition=gpu
#SBATCH --qos=long
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=90

# setup
module load cuda
export A='b c'

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output 'FOLDER/a b/demo/.submitit/%A_%a_%t_log.out' \
--kill-on-bad-exit=1 --cpus-per-task=3 --mpi=none \
PYTHON -u -m submitit.core._submit 'FOLDER/a b/demo/.submitit'
"""


def test_the_script_is_what_was_asked_and_what_dry_run_shows(
    slurm: FakeSlurm,
    command: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Sweep file, then the user's file, then the command line: the later one wins."""
    Path("config/stabkit").mkdir(parents=True)
    Path("config/stabkit/slurm.yaml").write_text(
        "partition: gpu\nqos: short\nsetup: [module load cuda, \"export A='b c'\"]\n"
        "additional_parameters: {exclude: 'n[1-3] n7', hold: true}\nsrun_args: [--mpi=none]\n"
    )
    words = ["nodes=2", "tasks_per_node=2", "gpus_per_node=2", "qos=long", "timeout_min=90"]
    words += ["signal_delay_s=120", "array_parallelism=2"]
    command = [*command, *(f"slurm.{word}" for word in words), "--runs", "a b"]
    assert main([*command, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"qos +long +command line", shown)
    assert re.search(rf"partition +gpu +{Path('config').resolve()}/stabkit/slurm.yaml", shown)
    assert re.search(r"mem_gb +1.5 +sweep file", shown)
    assert not Path("a b").exists()
    assert main(command) == 0
    (script,) = slurm.scripts()
    plain = re.sub(r"demo-[0-9a-f]{8}", "demo-TOKEN", script).rstrip() + "\n"
    here = {str(Path.cwd()): "FOLDER", sys.executable: "PYTHON"}
    for text, word in here.items():
        plain = plain.replace(text, word)
    assert plain == GOLDEN
    text = shown[shown.index("#!/bin/bash") : shown.index("Next: ")].rstrip()
    assert (
        re.sub(r"demo-XXXXXXXX", "demo-TOKEN", text)
        == re.sub(r"demo-[0-9a-f]{8}", "demo-TOKEN", script).rstrip()
    )


def test_arrays_fit_the_site_and_share_the_throttle(
    slurm: FakeSlurm,
    command: list[str],
) -> None:
    """MaxArraySize is 4 here; runs that ask for different things are different arrays."""
    axes = "zip: {train.batch: [8, 4], slurm.nodes: [1, 2]}\nseeds: [0, 1]\nslurm: "
    sweep = SWEEP.replace("slurm: {", axes + "{array_parallelism: 5, ")
    Path("demo.yaml").write_text(sweep)
    settings = [word for word in command if not word.startswith("train.batch")]
    assert main(settings) == 0
    scripts = slurm.scripts()
    nodes = [re.search(r"--nodes=(\d)", script)[1] for script in scripts]  # type: ignore[index]
    arrays = [re.search(r"--array=(\S+)", script)[1] for script in scripts]  # type: ignore[index]
    assert list(zip(nodes, arrays, strict=True)) == [
        ("1", "0-2%3"), ("1", "0-2%2"), ("2", "0-2%3"), ("2", "0-2%2"),
    ]  # fmt: skip
    batch = {
        job.job_id: load_config(str(folder / "config.yaml")).train.batch
        for folder in folders()
        if (job := read_submitted(RunDir(folder)))
    }
    assert sorted(batch) == sorted(slurm.queue())
    assert {size for job, size in batch.items() if job.startswith(("11_", "12_"))} == {8}


@pytest.mark.parametrize("count", [1, 4, 5, 12, 13])
def test_chunks_are_even_and_shares_add_up(count: int) -> None:
    sizes = chunks(count, 4)
    assert sum(sizes) == count
    assert max(sizes) <= 4
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-count // 4)
    assert sum(shares(8, sizes)) == 8
    assert set(shares(1, sizes)) == {1}


def test_a_second_launch_submits_only_what_is_missing(
    slurm: FakeSlurm,
    command: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(command) == 0
    assert slurm.queue() == ["11_0", "11_1", "11_2"]
    assert main(command) == 0
    assert "3 runs, 0 done, 3 running or queued, 0 to run" in capsys.readouterr().out
    assert len(slurm.scripts()) == 1, "what is in the queue is not submitted again"

    jobs = {RunDir(f): read_submitted(RunDir(f)) for f in folders()}
    states = dict(zip(jobs, ("done", "failed", "preempted"), strict=True))
    for rundir, state in states.items():
        rundir.write_status(Status(state, 3, 24, reason="as it is"))  # type: ignore[arg-type]
    slurm.end("11_0", "11_1", "11_2")
    assert main(command) == 0
    assert "1 done, 1 failed (--retry failed runs them again), 1 to run" in capsys.readouterr().out
    resubmitted = [r for r, before in jobs.items() if read_submitted(r) != before]
    assert [states[r] for r in resubmitted] == ["preempted"]
    assert slurm.queue() == ["12"]
    assert main([*command, "--retry", "failed"]) == 0
    assert slurm.queue() == ["12", "13"]


def test_a_local_launch_leaves_alone_what_slurm_has(
    slurm: FakeSlurm,
    command: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(command)
    capsys.readouterr()
    local = ["sweep", "demo.yaml", "--cluster", "local", *SMALL]
    for down in (False, True):  # also when nobody can tell: two must never train one run
        if down:
            (slurm.folder / "down").touch()
        assert main(local) == 1  # not done, so nothing may build on it
        printed = capsys.readouterr().out
        assert "3 running or queued, 0 to run" in printed
        said = "SLURM cannot be asked about it; if job 11_" if down else "SLURM has it as job 11_"
        assert printed.count(f"left alone, {said}") == 3


def launch(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stabkit", *COMMAND, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


def test_a_launcher_killed_inside_sbatch_is_noticed(
    slurm: FakeSlurm,
    command: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """SLURM has the jobs, nobody recorded them and their pickles are not in place."""
    (slurm.folder / "die").touch()
    assert launch().returncode == -signal.SIGKILL
    (slurm.folder / "die").unlink()
    assert slurm.queue() == ["11_0", "11_1", "11_2"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "a submission of 3 runs was cut off" in printed
    assert "0 of its jobs are in the queue and stay, 3 could not have run" in printed
    assert (slurm.folder / "canceled").read_text().split() == ["11_0", "11_1", "11_2"]
    assert slurm.queue() == ["12_0", "12_1", "12_2"]
    assert main(command) == 0
    assert "cut off" not in capsys.readouterr().out


def test_equal_requests_are_checked_once_however_many_runs(
    slurm: FakeSlurm, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = []

    def counting(*given: Any) -> Any:
        checked.append(given)
        return merged(*given)

    monkeypatch.setattr(submit, "merged", counting)
    assert main([*command, "--dry-run"]) == 0
    assert len(checked) == 2, "to show it, and to form the arrays"


@pytest.mark.parametrize("content", ['{"na', "[]", '{"name": "x"}', "\udc80"])
def test_a_damaged_note_is_named_with_what_to_do(
    slurm: FakeSlurm, command: list[str], capsys: pytest.CaptureFixture[str], content: str
) -> None:
    assert main(command) == 0
    (folder,) = Path("runs").glob("*/.submitit")
    note = note_file(folder, "stabkit-mini-12345678")
    note.write_bytes(content.encode(errors="surrogateescape"))
    for words in (command, [*command, "--cancel"]):
        assert main(words) == 1
        said = capsys.readouterr().err
        assert len(said.splitlines()) == 1
        assert f"{note.name}: damaged" in said
        assert "scancel --name=stabkit-mini-12345678" in said
    note.unlink()
    assert main(command) == 0


def test_a_launcher_killed_before_its_records_keeps_the_jobs(
    slurm: FakeSlurm,
    command: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = (
        "import os, signal, sys, stabkit.sweep.submit as submit\n"
        "submit.write_submitted = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from stabkit.cli import main\nmain(sys.argv[1:])"
    )
    done = subprocess.run([sys.executable, "-c", code, *COMMAND], check=False)
    assert done.returncode == -signal.SIGKILL
    assert read_submitted(RunDir(folders()[0])) is None
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "3 of its jobs are in the queue and stay, 0 could not have run" in printed
    assert "3 running or queued, 0 to run" in printed
    assert slurm.queue() == ["11_0", "11_1", "11_2"]
    lr = {
        job.job_id: load_config(str(folder / "config.yaml")).optim.lr
        for folder in folders()
        if (job := read_submitted(RunDir(folder)))
    }
    assert lr == {"11_0": 1e-3, "11_1": 2e-3, "11_2": 3e-3}


def test_two_launchers_at_once_submit_every_cell_once(
    slurm: FakeSlurm,
    command: list[str],
) -> None:
    os.mkfifo(slurm.folder / "wait")
    words = [sys.executable, "-m", "stabkit", *COMMAND]
    first = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    with (slurm.folder / "wait").open("w") as gate:  # opens once sbatch is at its reading end
        second = launch()
        gate.write("\n")
    assert first.wait(600) == 0
    assert second.returncode == 2
    assert "runs/demo: another process is writing here" in second.stderr
    assert slurm.queue() == ["11_0", "11_1", "11_2"]


def test_a_refusal_of_sbatch_is_told_and_leaves_the_runs_to_be_submitted(
    slurm: FakeSlurm,
    command: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (slurm.folder / "refuse").touch()
    assert main(command) == 1
    assert "invalid partition specified: nowhere" in capsys.readouterr().err
    (slurm.folder / "refuse").unlink()
    assert main(command) == 0
    assert slurm.queue() == ["11_0", "11_1", "11_2"]


def test_an_sbatch_that_was_killed_without_a_word_is_told(
    slurm: FakeSlurm,
    command: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (slurm.folder / "killed").touch()
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "stabkit: sbatch: " in error
    assert "SIGKILL" in error


def test_cancel_ends_the_cells_and_only_those_asked(
    slurm: FakeSlurm,
    command: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(command)
    fewer = [*command, "optim.lr=2e-3"]
    capsys.readouterr()
    assert main(fewer) == 0
    assert "not part of this request: 2 runs here" in capsys.readouterr().out
    assert main([*fewer, "--cancel-removed", "--dry-run"]) == 0
    assert "would cancel 2 jobs" in capsys.readouterr().out
    assert slurm.queue() == ["11_0", "11_1", "11_2"]
    shutil.copytree(folders()[1], folders()[1].with_name("copy"))
    assert main([*fewer, "--cancel-removed"]) == 0
    shutil.rmtree(folders()[0].with_name("copy"))
    assert slurm.queue() == ["11_1"], "the cell is found whatever its folder was called by"
    assert main([*command, "--cancel"]) == 0
    assert slurm.queue() == []
    assert "canceled 1 job;" in capsys.readouterr().out
    assert len(folders()) == 3, "what is on disk stays"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (['slurm.partition="a\\nrm -rf x"'], "partition = 'a\\nrm -rf x'"),
        (["slurm.partitoin=a"], "did you mean 'partition'"),
        (["slurm.timeout_min=null"], "timeout_min: missing"),
        (["slurm.gpus_per_node=2"], "a task drives one GPU"),
        (["slurm.timeout_min=1"], "signal_delay_s 90 is not below timeout_min 1"),
        (["slurm.additional_parameters={job_name: x}"], "job-name is set by stabkit"),
        (["--runs", "100%j"], "holds '%', which SLURM replaces"),
        (["--runs", "a\nb"], "holds '\\n', which SLURM replaces"),
        (["--cluster", "local", "slurm.nodes=2"], "slurm.nodes=2 needs --cluster slurm"),
    ],
)
def test_wrong_requests_are_refused_before_anything_is_written(
    slurm: FakeSlurm,
    command: list[str],
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    before = sorted(Path().rglob("*"))
    assert main([*command, *words]) == 2
    assert message in capsys.readouterr().err
    assert sorted(Path().rglob("*")) == before


def test_a_user_file_that_is_wrong_is_named(
    slurm: FakeSlurm,
    command: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("config/stabkit").mkdir(parents=True)
    Path("config/stabkit/slurm.yaml").write_text("partitoin: gpu\n")
    assert main(command) == 2
    assert "config/stabkit/slurm.yaml:\n  - partitoin: no such setting; did you mean" in (
        capsys.readouterr().err
    )


def test_slurm_that_does_not_answer_submits_nothing(
    slurm: FakeSlurm,
    command: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (slurm.folder / "down").touch()
    assert main(command) == 1
    assert "scontrol" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_auto_takes_slurm_where_the_sweep_asks_for_it(
    slurm: FakeSlurm,
    command: list[str],
) -> None:
    assert main(["sweep", "demo.yaml", *SMALL]) == 0
    assert len(slurm.queue()) == 3


def test_folders_of_pickles_are_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = jobs_folder(tmp_path)
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    assert jobs_folder(tmp_path).stat().st_mode & 0o777 == 0o700
    me = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: me + 1)
    with pytest.raises(PermissionError, match="belongs to another user"):
        jobs_folder(tmp_path)


def test_threads_are_the_cores_asked_for(
    slurm: FakeSlurm,
    command: list[str],
) -> None:
    """So that another attempt, on a larger node, still computes the same bits."""
    assert main([*command, "runtime.threads=null"]) == 0
    threads = {load_config(str(f / "config.yaml")).runtime.threads for f in folders()}
    assert threads == {3}


def test_a_run_whose_job_is_gone_is_lost_however_young_its_heartbeat(
    slurm: FakeSlurm, command: list[str]
) -> None:
    main(command)
    rundir = RunDir(folders()[0])
    rundir.write_status(Status("running", 3, 24))
    text = rundir.status_file.read_text().replace(socket.gethostname(), "n17")
    rundir.status_file.write_text(text)
    assert main(command) == 0
    assert len(slurm.scripts()) == 1, "its job is in the queue"
    job = read_submitted(rundir)
    assert job is not None
    slurm.end(job.job_id)
    assert main(command) == 0
    assert slurm.queue()[-1] == "12"


def test_a_failed_run_whose_job_comes_back_is_not_doubled(
    slurm: FakeSlurm, command: list[str]
) -> None:
    main(command)
    for folder in folders():
        RunDir(folder).write_status(Status("failed", 3, 24))
    assert main([*command, "--retry", "failed"]) == 0
    assert len(slurm.scripts()) == 1, "all three jobs are PENDING"
    text = (slurm.folder / "queue").read_text().replace("PENDING", "COMPLETING")
    (slurm.folder / "queue").write_text(text)
    assert main([*command, "--retry", "failed"]) == 0
    assert len(slurm.scripts()) == 2


def test_what_the_environment_asks_of_sbatch_is_told_and_what_is_ours_is_dropped(
    slurm: FakeSlurm,
    command: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kept = {"SBATCH_PARTITION": "p", "SLURM_CONF": "/etc/slurm.conf"}
    dropped = {"SBATCH_JOB_NAME": "mine", "SLURM_JOB_ID": "3", "RANK": "1", "WORLD_SIZE": "2"}
    dropped["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    for key, value in (kept | dropped).items():
        monkeypatch.setenv(key, value)
    assert main([*command, "--dry-run"]) == 0
    assert "since sbatch puts it first: SBATCH_PARTITION=p" in capsys.readouterr().out
    assert main(command) == 0
    seen = (slurm.folder / "environment-11").read_text().splitlines()
    for key, value in kept.items():
        assert f"{key}={value}" in seen
    assert not [line for line in seen if line.split("=")[0] in dropped]


def test_a_torn_status_is_no_end(slurm: FakeSlurm, command: list[str]) -> None:
    """As a crash of the machine may leave it."""
    main(command)
    slurm.end("11_0", "11_1", "11_2")
    for folder in folders():
        RunDir(folder).status_file.write_bytes(b"")
    assert main(command) == 0
    assert slurm.queue() == ["12_0", "12_1", "12_2"]


def test_a_snapshot_of_a_checkout_that_lost_a_file_is_refused(
    slurm: FakeSlurm,
    command: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    if shutil.which("rsync") is None:
        pytest.skip("needs rsync: apt-get install rsync")
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "gone.py").touch()
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(checkout)]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "a"]):
        subprocess.run([*git, *words], check=True)
    (checkout / "gone.py").unlink()
    monkeypatch.setattr("stabkit.sweep.submit.checkout", lambda: checkout)
    here = Path.cwd()
    assert main([*command, "--snapshot"]) == 2
    assert "commit the deletion of a file" in capsys.readouterr().err
    assert Path.cwd() == here
    assert slurm.queue() == []
    assert folders() == []
