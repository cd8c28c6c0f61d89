"""A disk that is full at any write operation of a training: with space again, it goes on."""

import shutil
from pathlib import Path

import pytest

from tests.faults.children import DISK, Run, Tell
from tests.faults.training import NEVER_FULL, assert_bit_equal, on_a_full_disk, whole

pytestmark = pytest.mark.processes


@pytest.mark.slow
@pytest.mark.parametrize(("lasting", "every"), [(False, 1), (True, 5)], ids=["once", "to the end"])
def test_at_a_write_operation(
    run: Run, unbroken: Path, tmp_path: Path, lasting: bool, every: int, tell: Tell
) -> None:
    """Full for one operation, or from there on until the process ends."""
    folder = tmp_path / "run"
    full = failed = 0
    while (code := run(on_a_full_disk, folder, 1 + full * every, lasting)) != NEVER_FULL:
        full += 1
        assert code in (0, DISK), full  # and no other error
        failed += code == DISK
        assert run(whole, folder) == 0, full
        assert_bit_equal(folder, unbroken)
        shutil.rmtree(folder)
    assert failed * every > 100
    tell(f"full disk: {full} at write operations, {failed} runs failed, all bit-equal in the end")
