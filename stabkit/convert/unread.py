"""Logs in a folder that were not read, and the command that reads one."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from stabkit.convert.series import listed

TEXTS = (".csv", ".json", ".jsonl", ".log", ".parquet", ".txt")
TRIED = 40  # files whose content is looked at
LARGEST = 2**24  # bytes of such a file


def unread_logs(
    folder: Path,
    read: Sequence[Path],
    is_known: Callable[[Path], bool],
    looks_like_log: Callable[[Path], bool],
) -> str:
    """Return in words which files and subfolders of `folder` are logs and hold none of `read`.

    It is empty if there are none. A subfolder counts if a file in it `is_known` by its name. Of
    files without such a name only the small ones in `folder` itself are looked at, up to `TRIED`.
    Checkpoints are parts of a log.
    """
    every = [p for p in sorted(folder.iterdir()) if not p.name.startswith((".", "checkpoint-"))]
    others = [p for p in every if not any(p == one or p in one.parents for one in read)]
    texts = [p for p in others if p.suffix in TEXTS and p.is_file() and p.stat().st_size <= LARGEST]
    logs = {path for path in texts[:TRIED] if looks_like_log(path)}
    logs |= {p for p in others if any(map(is_known, [p, *(p.rglob("*") if p.is_dir() else ())]))}
    if not logs:
        return ""
    found = sorted(logs)
    names = listed([str(path.relative_to(folder)) for path in found], 6)
    return f"{names}; one is read by its name: {shlex.join(['stabkit', 'analyze', str(found[0])])}"
