"""SIGKILL at every write operation of a training, which started again is the unbroken run."""

import shutil
import signal
from pathlib import Path

import pytest

from tests.faults.children import Run, Tell
from tests.faults.training import assert_bit_equal, killed, whole

pytestmark = pytest.mark.processes

AGAIN = 7  # every so many of the kills, the resumed run is killed as well


@pytest.mark.slow
def test_at_every_write_operation(run: Run, unbroken: Path, tmp_path: Path, tell: Tell) -> None:
    kills = again = 0
    while True:
        folder = tmp_path / "run"
        code = run(killed, folder, kills + 1)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
        if kills % AGAIN == 0:
            at = 1 + 5 * kills % 40
            again += run(killed, folder, at) == -signal.SIGKILL
        assert run(whole, folder) == 0, kills
        assert_bit_equal(folder, unbroken)
        shutil.rmtree(folder)
    assert kills > 150
    tell(f"kills: {kills} at write operations, {again} of them twice, all bit-equal")
