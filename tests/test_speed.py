"""Every benchmark of speed in short, beside benchmarks/results.json: `make test-speed`."""

import sys
from importlib import import_module
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # last, so that it hides nothing
bench, regression, results = map(import_module, ("bench", "regression", "results"))


@pytest.mark.speed
@pytest.mark.parametrize("name", bench.NAMES)
def test_no_ratio_is_worse_than_on_record(name: str) -> None:
    record = bench.read_record(bench.RECORD)
    assert name in record, f"not on record: python benchmarks/bench.py {name}"
    found = results.read_rows(bench.run(name, "--quick"))
    fell_behind = regression.regressions(results.read_rows(record[name]["quick"]), found)
    assert not fell_behind, "\n".join(fell_behind)
