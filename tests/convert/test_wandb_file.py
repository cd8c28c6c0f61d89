"""`.wandb` files, written here as W&B's format says: LevelDB's log around protocol buffers."""

import json
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import pytest

from stabkit.convert.convert import convert
from stabkit.convert.series import ConvertError
from tests.convert.conftest import converted


def varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def field(number: int, content: bytes | int) -> bytes:
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def record(step: int, row: dict[str, object], nested: bool = False) -> bytes:
    items = b""
    for name, value in row.items():
        parts = name.split(".") if nested else [name]
        key = b"".join(field(2, p.encode()) for p in parts) if nested else field(1, name.encode())
        items += field(1, key + field(16, json.dumps(value).encode()))
    return field(1, step + 1) + field(2, items + field(2, field(1, step)))


def framed(records: list[bytes]) -> bytes:
    data = b":W&B" + struct.pack("<HB", 0xBEE1, 0)
    for content in records:
        first = True
        while first or content:
            left = 32768 - len(data) % 32768
            if left < 7:
                data += b"\0" * left
                continue
            part, content = content[: left - 7], content[left - 7 :]
            kind = (1 if first else 4) if not content else (2 if first else 3)
            data += struct.pack("<IHB", zlib.crc32(part), len(part), kind) + part
            first = False
    return data


def log(path: Path, count: int = 5, padding: int = 10) -> Path:
    other = field(3, b"a summary") + field(7, b"\x01" * padding)
    rows = [
        record(n, {"train/loss": 2 - n / 10, "note": "x" * padding, "_step": n}, n % 2 == 1)
        for n in range(count)
    ]
    path.write_bytes(framed([other, *rows, other]))
    return path


@pytest.mark.parametrize("padding", [10, 40_000, 32_768 - 60])
def test_a_history_is_read_across_blocks(padding: int, tmp_path: Path, out: Path) -> None:
    run = converted(log(tmp_path / "run-a.wandb", padding=padding), out)
    assert run.scalar("train/loss").to_dict() == pytest.approx({n: 2 - n / 10 for n in range(5)})


def test_a_torn_end_is_said_and_what_was_before_it_is_read(tmp_path: Path, out: Path) -> None:
    whole = log(tmp_path / "run-a.wandb").read_bytes()
    (tmp_path / "run-b.wandb").write_bytes(whole[: len(whole) * 3 // 4])
    run = converted(tmp_path / "run-b.wandb", out)
    assert 2 <= run.scalar("train/loss").size < 5
    assert any("torn or damaged" in n for n in run.dir.read_meta()["converted"]["notes"])


@pytest.mark.parametrize("at", range(7, 200, 9))
def test_damage_ends_in_an_error_or_in_what_was_before_it(
    at: int, tmp_path: Path, out: Path
) -> None:
    content = bytearray(log(tmp_path / "run-a.wandb").read_bytes())
    content[at] ^= 0xFF
    (tmp_path / "run-a.wandb").write_bytes(bytes(content))
    with suppress(ConvertError):
        (made,) = convert(tmp_path / "run-a.wandb", out)
        assert made.plan.scalars["train/loss"].values.max() <= 2


def test_a_file_without_a_row_says_so(tmp_path: Path, out: Path) -> None:
    whole = log(tmp_path / "run.wandb").read_bytes()
    (tmp_path / "run.wandb").write_bytes(whole[:7])
    with pytest.raises(ConvertError, match="no row of the history is in it"):
        convert(tmp_path / "run.wandb", out)
