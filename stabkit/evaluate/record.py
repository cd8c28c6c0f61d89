"""Keep the results of an evaluation in the run folder."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from stabkit.config import RunConfig, run_id
from stabkit.evaluate.measure import Inputs, Result
from stabkit.rundir import RunDir
from stabkit.store.parts import write_part
from stabkit.store.writer import Writer, read_part


def check_parts(rundir: RunDir) -> None:
    """Read all parts of the `evals` table; raise ValueError for a damaged one.

    A damaged part is refused before hours of work, and it stays as it is.
    """
    for part in _parts(rundir):
        read_part(part)


def record(
    rundir: RunDir,
    run: RunConfig,
    inputs: Inputs,
    step: int,
    metric: str,
    results: list[Result],
    settings: dict[str, Any],
) -> None:
    """Print each result, write its bits to the table and how it was measured to the log."""
    writer = Writer(rundir.path, run_id(run))
    labels = torch.from_numpy(inputs.heldout.labels)
    chance = 1 / len(inputs.train.classes)
    data = inputs.config.data.model_dump(mode="json")
    found = []
    for result in results:
        correct = (result.predicted.cpu() == labels).numpy()
        value = float(correct.mean())
        writer.add_eval(step, metric, value, chance, result.k, result.temperature, correct)
        neighbors = f", k {result.k}" if result.k else ""
        inputs.say(f"{metric}{neighbors}: {100 * value:.2f} % of {len(correct)} held-out images")
        found.append({"metric": metric, "value": value, **result.facts})
    replace_rows(rundir, writer, step, metric)
    # The events come after the rows, so that no event tells of a result that is not there.
    for facts in found:
        rundir.append_entry("evaluated", step, **facts, settings=settings, data=data)


def replace_rows(rundir: RunDir, writer: Writer, step: int, metric: str) -> None:
    """Flush the writer, then remove the rows of this step and metric from older parts.

    In this order a process that dies in between leaves both results, never none.
    """
    older = _parts(rundir)
    writer.flush()
    for part in older:
        rows = read_part(part)
        same = pc.and_(
            pc.equal(rows["step"], step), pc.equal(rows["metric"].cast(pa.string()), metric)
        )
        kept = rows.filter(pc.invert(same))
        if not kept.num_rows:
            part.unlink()
        elif kept.num_rows < rows.num_rows:
            write_part(part, kept, rows.schema)


def _parts(rundir: RunDir) -> list[Path]:
    return sorted(rundir.table("evals").glob("part-*.parquet"))
