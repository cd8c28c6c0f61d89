"""The three Parquet tables of a run. A change that an older reader would misread raises VERSION."""

import pyarrow as pa

VERSION = 1
SIGNALS = ("grad_norm", "grad_max", "param_norm")
"""The signals in every part of `layers`: L2 norm and largest magnitude of the gradient, and L2 norm
of the parameters. A part may have further columns of float32, each a signal."""
KEYS = ("step", "layer", "depth")
METRIC = "knn_heldout"
"""The evaluation that `stabkit train` makes, and that is searched for dips before all others."""

_name = pa.dictionary(pa.int32(), pa.string())

LAYERS = pa.schema(
    [
        ("step", pa.int64()),
        ("layer", _name),
        ("depth", pa.int16()),
        *((signal, pa.float32()) for signal in SIGNALS),
    ]
)
SCALARS = pa.schema([("step", pa.int64()), ("name", _name), ("value", pa.float64())])
EVALS = pa.schema(
    [
        ("step", pa.int64()),
        ("metric", _name),
        ("value", pa.float64()),
        ("chance", pa.float64()),
        ("n", pa.int32()),
        ("k", pa.int16()),
        ("temperature", pa.float32()),
        ("correct", pa.binary()),
    ]
)
TABLES = {"layers": LAYERS, "scalars": SCALARS, "evals": EVALS}


def with_identity(schema: pa.Schema, run: str) -> pa.Schema:
    """Return the schema with the version and the id of the run in its metadata."""
    return schema.with_metadata(
        {"stabkit_version": str(VERSION), "stabkit_run": run.encode("utf-8", "backslashreplace")}
    )


def version_of(schema: pa.Schema) -> int:
    """Return the schema version that a part was written with; 0 if it is not a stabkit table."""
    text = (schema.metadata or {}).get(b"stabkit_version", b"0").decode(errors="replace")
    return int(text) if text.isdigit() else 0
