"""Boxes of names and numbers, as Stable-Baselines3 prints them: one for each time it logs.

-----------------------------
| rollout/         |        |
|    ep_rew_mean   | 23.5   |
| time/            |        |
|    total_timesteps | 2048 |
-----------------------------
"""

import re
from collections.abc import Iterator
from pathlib import Path

from stabkit.printing import counted

_BEGIN = re.compile(r"^-{8,}\s*\n\| [\w .\-]+/ *\| *\|", re.MULTILINE)
_RULE = re.compile(r"^-{8,}\s*$")
_ROW = re.compile(r"^\|( +)([^|]+?) *\|([^|]*)\|\s*$")


def is_boxed(start: str) -> bool:
    """Return whether a text that begins like this holds such a box."""
    return _BEGIN.search(start) is not None


def box_records(path: Path, notes: list[str]) -> Iterator[dict[str, str]]:
    """Yield a record for each box, with `rollout/ep_rew_mean` for a name below `rollout/`."""
    found: dict[str, str] = {}
    group, others = "", 0
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for line in file:
            if row := _ROW.match(line):
                indent, name, value = row[1], row[2], row[3].strip()
                if name.endswith("/") and not value:
                    group = name
                else:
                    found[group + name if len(indent) > 1 else name] = value
            elif _RULE.match(line):
                if found:
                    yield found
                found, group = {}, ""
            elif line.strip():
                others += 1
    if found:
        notes.append("the last box is cut off and left out")
    if others:
        notes.append(f"{counted(others, 'line')} outside the boxes left out")
