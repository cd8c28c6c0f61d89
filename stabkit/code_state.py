"""The state of the code that runs: its checkout, commit and uncommitted differences."""

import subprocess
from pathlib import Path
from typing import Any


def checkout() -> Path | None:
    """Return the checkout that stabkit is imported from; None if it is installed as a package."""
    root = Path(__file__).resolve().parents[1]
    return root if (root / ".git").exists() else None


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return commit and uncommitted difference of a checkout; None outside of one."""
    commit = _git(folder, "rev-parse", "HEAD")
    return None if commit is None else {"commit": commit, "diff": _git(folder, "diff", "HEAD")}


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    # The files that differ may be in any encoding.
    return done.stdout.decode("utf-8", "backslashreplace").strip()
