"""The end of a run's log, where the reason of its end is."""

from pathlib import Path

LAST_BYTES = 4096


def last_lines(log: Path) -> list[str]:
    """Return the last lines of a log; none if it cannot be read."""
    if not log.is_file():  # a pipe would block for ever
        return []
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LAST_BYTES))
            return file.read().decode(errors="replace").split("\n")
    except OSError:
        return []


def last_error(log: Path) -> str:
    """Return the last line that names an error, or else the last line.

    What srun prints at the end comes after the error, so its lines are passed over.
    """
    lines = [line.strip() for line in last_lines(log)]
    lines = [line for line in lines if line and not line.startswith("srun:")]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or [""])[-1]


def last_refusal(log: Path) -> str:
    """Return the last message of `stabkit` itself in a log, with its list of problems, if any."""
    lines = last_lines(log)
    starts = [i for i, line in enumerate(lines) if line.startswith("stabkit: ")]
    if not starts:
        return ""
    first, *rest = lines[starts[-1] :]
    problems = [line.strip().removeprefix("- ") for line in rest if line.startswith("  - ")]
    return " ".join([first.removeprefix("stabkit: "), "; ".join(problems)]).strip()
