"""Sweep files and folders that nobody means well with: a clear message, and nothing lost."""

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stabkit.cli import main
from tests.conftest import SMALL
from tests.sweep.conftest import FakeSlurm

pytestmark = pytest.mark.processes

HOSTILE = {
    "an alias in itself": (
        "name: a\nbase: tiny\ngrid: &g {optim.lr: [*g]}",
        "an alias (*) stands inside its own value",
    ),
    "billions of values": (
        "name: a\nbase: tiny\nset:\n  a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
        + "".join(
            f"  {b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n"
            for a, b in zip("abcdefgh", "bcdefghi", strict=True)
        ),
        "more than 1,000,000 values",
    ),
    "a million runs": (
        "name: a\nbase: tiny\ngrid: {optim.lr: &v ["
        + ", ".join(f"{i + 1}.0e-6" for i in range(100))
        + "], optim.weight_decay: *v, method.temperature: *v}",
        "1,000,000 runs; a sweep has at most 10,000",
    ),
    "a name that climbs": ("name: ../a\nbase: tiny", "name = '../a'"),
    "a name with a break": ('name: "a\\nb"\nbase: tiny', "name = 'a\\nb'"),
    "a base with a break": ('name: a\nbase: "x\\n.yaml"', "No such file"),
    "code": ("name: !!python/object/apply:os.system [ls]\nbase: tiny", "not valid YAML"),
    "not text": ("name: \x00", "not valid YAML"),
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("cluster", ["local", "slurm"])
def test_hostile_sweep_files_are_refused_before_anything_is_written(
    slurm: FakeSlurm, capsys: pytest.CaptureFixture[str], cluster: str, case: str
) -> None:
    text, message = HOSTILE[case]
    Path("a.yaml").write_text(text)
    before = sorted(Path().rglob("*"))
    assert main(["sweep", "a.yaml", "--cluster", cluster]) == 2
    assert message in capsys.readouterr().err
    assert sorted(Path().rglob("*")) == before


NAMES = ["a 'quoted' \"name\"", "$(touch pwned); `touch pwned`", "ünï ☃", "-rf", "a;b&c|d"]


@pytest.mark.parametrize("name", NAMES)
def test_odd_folders_are_only_folders(slurm: FakeSlurm, name: str) -> None:
    """What the script says is run by a shell: its words must come out as they went in."""
    Path("demo.yaml").write_text("name: demo\nbase: tiny\nslurm: {timeout_min: 5}")
    runs = Path(name).resolve()
    assert main(["sweep", "demo.yaml", f"--runs={name}", *SMALL]) == 0
    (script,) = slurm.scripts()
    (srun,) = (line for line in script.splitlines() if line.startswith("srun "))
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {srun}"], capture_output=True, text=True, check=True
    ).stdout.split("\0")
    assert str(runs / "demo/.submitit") in words
    assert not Path("pwned").exists()


def launch_limited_to(size: int, cluster: str) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    command = [sys.executable, "-m", "stabkit", "sweep", "demo.yaml", "--cluster", cluster, *SMALL]
    return subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=limit)


@pytest.mark.parametrize("cluster", ["local", "slurm"])
def test_a_full_disk_is_told_and_submits_nothing(slurm: FakeSlurm, cluster: str) -> None:
    Path("demo.yaml").write_text("name: demo\nbase: tiny\nslurm: {timeout_min: 5}")
    done = launch_limited_to(16, cluster)
    assert done.returncode == 1
    assert "stabkit: [Errno 27] File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert slurm.queue() == []
    assert main(["sweep", "demo.yaml", *SMALL]) == 0
    assert slurm.queue() == ["11"]


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs /sys, which is read-only")
@pytest.mark.parametrize("cluster", ["local", "slurm"])
def test_a_folder_that_cannot_be_written_is_told(
    slurm: FakeSlurm, capsys: pytest.CaptureFixture[str], cluster: str
) -> None:
    Path("demo.yaml").write_text("name: demo\nbase: tiny\nslurm: {timeout_min: 5}")
    words = ["sweep", "demo.yaml", "--cluster", cluster, "--runs", "/sys/kernel", *SMALL]
    assert main(words) == 1
    assert "/sys/kernel/demo" in capsys.readouterr().err
    assert slurm.queue() == []
