"""Run every benchmark of speed in short and compare it with the record: `make test-speed`."""

import pytest

from benchmarks import bench
from benchmarks.lib import regression, results


@pytest.mark.speed
@pytest.mark.parametrize("name", bench.NAMES)
def test_no_ratio_is_worse_than_on_record(name: str) -> None:
    record = bench.read_record(bench.RECORD)
    assert name in record, f"not on record: python -m benchmarks.bench {name}"
    found = results.read_rows(bench.run(name, "--quick"))
    fell_behind = regression.regressions(results.read_rows(record[name]["quick"]), found)
    assert not fell_behind, "\n".join(fell_behind)
