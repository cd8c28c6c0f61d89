"""Which code runs: the checkout that stabkit comes from, its commit and what differs from it."""

import subprocess
from pathlib import Path
from typing import Any

import stabkit


def checkout() -> Path | None:
    """The checkout that stabkit is imported from; None when it is installed as a package."""
    root = Path(stabkit.__file__).resolve().parents[1]
    return root if (root / ".git").exists() else None


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and uncommitted difference of the checkout at `folder`; None outside of one."""
    commit = _git(folder, "rev-parse", "HEAD")
    return None if commit is None else {"commit": commit, "diff": _git(folder, "diff", "HEAD")}


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    # a file that differs may be in any encoding
    return done.stdout.decode("utf-8", "backslashreplace").strip()
