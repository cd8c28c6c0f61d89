"""A run's folder: its paths, and what is read from and written to them."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stabkit.rundir import log, notes, status
from stabkit.rundir.atomic import atomic_write, remove_dead
from stabkit.rundir.find import TABLES
from stabkit.rundir.lock import HeldFolder, is_locked, locked
from stabkit.rundir.own_files import read_file, refuse_link
from stabkit.rundir.status import Standing, Status


@dataclass(frozen=True)
class RunDir:
    """The folder `runs/<sweep>/<settings>-<run id>`; nothing outside `path` is ever touched."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def meta_file(self) -> Path:
        return self.path / "meta.json"

    @property
    def status_file(self) -> Path:
        return self.path / "status.json"

    @property
    def events_file(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def notes_file(self) -> Path:
        return self.path / "notes.jsonl"

    @property
    def log_file(self) -> Path:
        return self.path / "log.txt"

    @property
    def job_file(self) -> Path:
        return self.path / "job.json"

    @property
    def lock_file(self) -> Path:
        return self.path / ".lock"

    @property
    def checkpoint_file(self) -> Path:
        return self.path / "checkpoints" / "last.pt"

    @property
    def states_folder(self) -> Path:
        return self.path / "states"

    def table(self, name: str) -> Path:
        return self.path / name

    def read_status(self) -> Status | None:
        """Return None when there is no status yet. Raises ValueError that names a damaged file."""
        return status.read_status(self.status_file)

    def last_status(self) -> Status | None:
        """Return None also for a damaged status: the checkpoint says where to go on."""
        try:
            return self.read_status()
        except ValueError:
            return None

    def write_status(self, status_: Status) -> None:
        """Replace the status, also on a full disk. Raises FileNotFoundError without the folder."""
        status.write_status(self.status_file, status_)

    def standing(self) -> Standing:
        """Return how the run stands by its files: its status, corrected by its lock.

        It is `lost` when its status says running, or is damaged, and no process is seen.
        """
        try:
            return self.standing_with(self.read_status())
        except ValueError:
            return "running" if self.is_busy() else "lost"

    def standing_with(self, last: Status | None) -> Standing:
        """Return how the run stands, given its status as it was just read."""
        if last is not None and last.state == "done":
            return "done"
        if self.is_busy():
            return "running"
        if last is None:
            return "missing"
        if last.state != "running":
            return last.state
        return "running" if status.heard_lately(last, self._written()) else "lost"

    def state(self, standing: Standing | None = None) -> str:
        """Return the state of the run in one word, as every table has it.

        It is `standing`, by default that of the files. Where there is no status, a converted log is
        `recorded`, a run with rows is `lost`, and any other is `waiting`.
        """
        standing = standing or self.standing()
        if standing != "missing":
            return standing
        try:
            if "converted" in self.read_meta():
                return "recorded"
        except (ValueError, OSError):
            pass
        return "lost" if any(self.table(name).is_dir() for name in TABLES) else "waiting"

    def is_ahead(self) -> bool:
        """Return whether the run counts as lost only because a clock is wrong.

        Another machine's status lies in this machine's future. The run may be alive, so it must
        not be started again.
        """
        last = self.last_status()
        return (
            last is not None and last.state == "running" and status.is_ahead(last, self._written())
        )

    def _written(self) -> float:
        try:
            return self.status_file.stat().st_mtime
        except OSError:  # moved meanwhile
            return float("-inf")

    def read_meta(self) -> dict[str, Any]:
        if not self.meta_file.exists():
            return {}
        content = json.loads(read_file(self.meta_file))
        return content if isinstance(content, dict) else {}

    def is_of_train(self) -> bool:
        """Return whether stabkit's own training wrote here (`of_train`); a damaged file says no."""
        try:
            return of_train(self.read_meta())
        except (OSError, ValueError):
            return False

    def write_meta(self, meta: dict[str, Any]) -> None:
        atomic_write(self.meta_file, json.dumps(meta, indent=1).encode())

    def append_entry(self, kind: str, step: int | None = None, **facts: Any) -> None:
        """Append an entry to the log: time, kind (`start`, `nonfinite`, …), step and facts."""
        log.append_entry(self.events_file, kind, step, facts)

    def read_entries(self) -> list[dict[str, Any]]:
        """Read every complete line of the log; a LeftOutWarning counts damaged ones."""
        return log.read_entries(self.events_file)

    def trim_entries(self, step: int) -> None:
        """Drop what was observed at or after `step`, before a run is resumed there."""
        log.trim_entries(self.events_file, step)

    def append_note(self, step: int, text: str) -> None:
        """Append a note to `notes.jsonl`, which no training writes; needs no lock."""
        notes.append_note(self.notes_file, step, text)

    def read_notes(self) -> list[notes.Note]:
        """Return the notes of people, in the order of their steps."""
        return notes.read_notes(self.notes_file)

    @contextmanager
    def lock(self) -> Iterator[HeldFolder]:
        """Hold the run for this process, and remove what killed processes left half written.

        Creates the folder. Raises RunBusyError when another process holds the run, LinkedError
        where a link in the folder would lead its writes elsewhere.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        folders = [self.path / name for name in (*TABLES, "checkpoints", "states")]
        for path in (*folders, self.events_file, self.log_file, self.lock_file):
            refuse_link(path)
        with locked(self.lock_file):
            for folder in (self.path, *folders):
                remove_dead(folder)
            yield HeldFolder(self.path)

    def is_busy(self) -> bool:
        """Return whether a live process on this machine holds the run."""
        return is_locked(self.lock_file)


def of_train(meta: Mapping[str, Any]) -> bool:
    """Return whether a `meta.json` is of stabkit's own training: it alone notes its attempts."""
    return bool(meta.get("attempts"))
