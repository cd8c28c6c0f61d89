"""Read labeled images from Parquet files in the layout of the Hugging Face hub."""

import json
import re
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stabkit.printing import first_of
from stabkit.train.data.errors import DataError
from stabkit.train.data.image_files import HELDOUT_NAMES, existing_folder
from stabkit.train.data.image_set import ImageSet, class_ranks, encoded_set, file_stamp

_IMAGE_COLUMNS = ("image", "img")
_NUMBERED = re.compile(r"(.+)-([0-9]{1,9})-of-([0-9]{1,6})(?:-[0-9a-f]+)?\.parquet$")
_LABEL_COLUMNS = ("label", "labels", "fine_label")


@dataclass(frozen=True, eq=False)
class _ParquetShard:
    """One file: encoded images, labels int64 [N] as stored, and class names if it has any."""

    file: Path
    images: pa.ChunkedArray
    labels: NDArray[np.int64]
    names: tuple[str, ...] | None


def parquet_sets(path: str) -> tuple[ImageSet, ImageSet]:
    """Read the shards train*.parquet and validation* (or val, test) in `path` or `path`/data.

    Images are binary, or a struct with the field bytes, in a column image or img. Labels are
    integers in label, labels or fine_label. Class names come from the Hugging Face metadata;
    without it the classes are the labels that occur in training, as text. All encoded images are
    kept in memory. Raises DataError that names file, row or column, what was found and what was
    expected.
    """
    root = existing_folder(path)
    train_files, heldout_files = _shard_files(root, ("train",)), _shard_files(root, HELDOUT_NAMES)
    for file in heldout_files:
        if any(file.samefile(other) for other in train_files):
            raise DataError(f"{file}: is also a file of the training split; both must differ")
    train, heldout = ([_read_shard(f) for f in files] for files in (train_files, heldout_files))
    names = train[0].names
    for shard in [*train, *heldout]:
        if shard.names != names:
            raise DataError(
                f"{shard.file}: its class names {shard.names} are not those of "
                f"{train[0].file}: {names}"
            )
    if names is None:
        values = np.unique(np.concatenate([shard.labels for shard in train]))
        names = tuple(str(value) for value in values)
    else:
        values = np.arange(len(names))
    return _joined(train, names, values), _joined(heldout, names, values)


def _shard_files(root: Path, splits: tuple[str, ...]) -> list[Path]:
    for split in splits:
        for folder in (root, root / "data"):
            files = sorted(folder.glob(f"{split}*.parquet"))
            if files:
                _refuse_incomplete(folder, files)
                return files
    wanted = " or ".join(f"{split}*.parquet" for split in splits)
    found = sorted(p.name for p in [*root.glob("*.parquet"), *root.glob("data/*.parquet")])
    raise DataError(
        f"{root}: has no {wanted}, neither there nor in its folder data; "
        f"Parquet files there: {', '.join(found[:8]) or 'none'}"
    )


def _refuse_incomplete(folder: Path, files: list[Path]) -> None:
    """Raise DataError unless the shards NAME-00000-of-00004 are complete, once each."""
    groups: dict[str, list[tuple[int, int, str]]] = {}
    for file in files:
        if part := _NUMBERED.match(file.name):
            name, number, total = part.groups()
            groups.setdefault(name, []).append((int(number), int(total), file.name))
    for name, parts in groups.items():
        _refuse_two_versions(folder, files, name, {total for _, total, _ in parts})
        _refuse_gaps(folder, name, parts)


def _refuse_two_versions(folder: Path, files: list[Path], name: str, totals: set[int]) -> None:
    """Raise DataError when a split is there in two numbers of shards, or whole and in shards."""
    whole = folder / f"{name}.parquet"
    if len(totals) > 1 or whole in files:
        found = [f"-of-{total:05}" for total in sorted(totals)]
        found += [whole.name] * (whole in files)
        raise DataError(
            f"{folder}: there is more than one version of {name}: {' and '.join(found)}; "
            "remove all but one"
        )


def _refuse_gaps(folder: Path, name: str, parts: list[tuple[int, int, str]]) -> None:
    """Raise DataError if a shard of `parts` (number, total, file) is missing, double or unknown."""
    total = parts[0][1]
    counts = Counter(number for number, _, _ in parts)
    twice = sorted(file for number, _, file in parts if counts[number] > 1)
    if twice:
        raise DataError(
            f"{folder}: two files for one shard: {', '.join(twice[:8])}; remove all but one of each"
        )
    missing = sorted(set(range(total)) - counts.keys())
    foreign = sorted(file for number, _, file in parts if number >= total)
    if missing or foreign:
        names = [f"{name}-{number:05}-of-{total:05}.parquet" for number in missing]
        what = [f"missing {first_of(names, 8)}"] * bool(missing)
        what += [f"{file} is out of range, since numbers start at 0" for file in foreign[:8]]
        raise DataError(f"{folder}: the shards of {name} are incomplete: {'; '.join(what)}")


def _read_shard(file: Path) -> _ParquetShard:
    try:
        table = pq.ParquetFile(file, page_checksum_verification=True)
        schema = table.schema_arrow
        image, label = (_column(file, schema, names) for names in (_IMAGE_COLUMNS, _LABEL_COLUMNS))
        columns = table.read([image, label])
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: cannot be read as Parquet ({error})") from error
    if not columns.num_rows:
        raise DataError(f"{file}: has no rows; remove it or write it again")
    return _ParquetShard(
        file,
        _image_bytes(file, image, columns[image]),
        _label_values(file, label, columns[label]),
        _class_names(schema, label),
    )


def _column(file: Path, schema: pa.Schema, names: tuple[str, ...]) -> str:
    for name in names:
        if name in schema.names:
            return name
    raise DataError(
        f"{file}: has no column {' or '.join(names)}; its columns are {', '.join(schema.names)}"
    )


def _image_bytes(file: Path, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        column = pc.struct_field(column, "bytes")
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        raise DataError(
            f"{file}: column {name} is {kind}; expected binary or struct<bytes: binary, …>"
        )
    _refuse_null(file, name, column, "an encoded image")
    # Give all shards one type, whose offsets reach beyond 2 GiB.
    return column.cast(pa.large_binary())


def _label_values(file: Path, name: str, column: pa.ChunkedArray) -> NDArray[np.int64]:
    if not pa.types.is_integer(column.type):
        raise DataError(f"{file}: column {name} is {column.type}; labels must be integers")
    _refuse_null(file, name, column, "a label of 0 or more")
    labels: NDArray[np.int64] = column.to_numpy().astype(np.int64)
    if (labels < 0).any():
        row = int(np.argmax(labels < 0))
        raise DataError(f"{file}: row {row}: {name} is {labels[row]}; expected 0 or more")
    return labels


def _refuse_null(file: Path, name: str, column: pa.ChunkedArray, expected: str) -> None:
    if column.null_count:
        row = int(np.argmax(column.is_null().to_numpy()))
        raise DataError(f"{file}: row {row}: {name} is null; expected {expected}")


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """Return the names of a ClassLabel feature; the `datasets` library keeps them in the schema."""
    try:
        content = json.loads((schema.metadata or {})[b"huggingface"])
        return tuple(content["info"]["features"][label]["names"])
    except (KeyError, TypeError, ValueError):
        return None


def _joined(
    shards: list[_ParquetShard], names: tuple[str, ...], values: NDArray[np.int64]
) -> ImageSet:
    """Return one set of several shards; `values` are the stored labels of the classes, sorted."""
    images = pa.chunked_array([chunk for shard in shards for chunk in shard.images.chunks])
    starts = [0, *accumulate(len(shard.labels) for shard in shards)]

    def where(i: int) -> str:
        part = bisect_right(starts, i) - 1
        return f"{shards[part].file}: row {i - starts[part]}"

    labels = np.concatenate([shard.labels for shard in shards])
    return encoded_set(
        class_ranks(labels, values, where),
        names,
        lambda i: images[i].as_py(),
        where,
        lambda: file_stamp(shards[0].file.parent, [shard.file for shard in shards]),
    )
