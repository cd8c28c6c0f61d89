"""A run's folder: its paths, its status, its log and its lock."""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stabkit.rundir.files import (
    NoFileError,
    append_to,
    atomic_write,
    overwrite,
    read_file,
    refuse_link,
    remove_dead,
    same_folder,
    utc_now,
)
from stabkit.rundir.find import TABLES, left_out
from stabkit.rundir.status import Standing, Status, heard_of_lately, is_ahead, parse_status


class RunBusyError(RuntimeError):
    """Another live process is writing this run."""


class HeldFolder:
    """A run's folder whose lock this process holds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._is_same = same_folder(path)

    def check(self) -> None:
        """Raise FileNotFoundError if the folder was deleted, moved or replaced by another."""
        if not self._is_same():
            raise FileNotFoundError(f"{self.path}: the run's folder was deleted or moved")


@dataclass(frozen=True)
class RunDir:
    """The folder `runs/<sweep>/<slug>-<hash8>`; nothing outside `path` is ever touched."""

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
    def log_file(self) -> Path:
        return self.path / "log.txt"

    @property
    def job_file(self) -> Path:
        return self.path / "job.json"

    @property
    def checkpoint_file(self) -> Path:
        return self.path / "checkpoints" / "last.pt"

    def table(self, name: str) -> Path:
        return self.path / name

    def read_status(self) -> Status | None:
        """None when there is no status yet. Raises ValueError that names a damaged file."""
        try:
            # no number where a number would be NaN or infinite: the others are as good
            text = read_file(self.status_file).decode()
            return parse_status(json.loads(text, parse_constant=lambda _: None))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, RecursionError, NoFileError, IsADirectoryError) as error:
            raise ValueError(f"{self.status_file}: not a status file ({error})") from None

    def last_status(self) -> Status | None:
        """None as well when a crash of the machine tore it: the checkpoint says where to go on."""
        try:
            return self.read_status()
        except ValueError:
            return None

    def write_status(self, status: Status) -> None:
        """Replace the status; on a full disk write a last word over the one that is there.

        Raises FileNotFoundError when the folder is gone: it is never made anew by its run.
        """
        if not self.path.is_dir():
            raise FileNotFoundError(f"{self.path}: the run's folder was deleted or moved")
        content = asdict(status) | {"heartbeat": utc_now(), "host": socket.gethostname()}
        # a heartbeat comes again in a second; a last word does not
        durable = status.state != "running"
        text = json.dumps(content).encode()
        try:
            atomic_write(self.status_file, text, durable)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            if not (full and durable and self.status_file.exists()):
                raise
            overwrite(self.status_file, text)

    def standing(self) -> Standing:
        """How the run stands: `lost` when it says running and its process is gone or silent.

        Also when its status is damaged, as a crash of the machine may leave it.
        """
        try:
            status = self.read_status()
        except ValueError:
            return "running" if self.is_busy() else "lost"
        if status is not None and status.state == "done":
            return "done"
        if self.is_busy():
            return "running"
        if status is None:
            return "missing"
        if status.state != "running":
            return status.state
        return "running" if heard_of_lately(status, self._written()) else "lost"

    def is_ahead(self) -> bool:
        """Whether it is said to run on a machine whose last word is later than it is here.

        It counts as lost, but is not to be started again: it may well be alive.
        """
        status = self.last_status()
        return (
            status is not None and status.state == "running" and is_ahead(status, self._written())
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

    def write_meta(self, meta: dict[str, Any]) -> None:
        atomic_write(self.meta_file, json.dumps(meta, indent=1).encode())

    def append_event(self, kind: str, step: int | None = None, **facts: Any) -> None:
        """One line: when, what (`start`, `resume`, `done`, `nonfinite`, …), at which step."""
        event = {"time": utc_now(), "kind": kind} | ({} if step is None else {"step": step}) | facts
        line = (json.dumps(event) + "\n").encode()
        # one write, so lines never interleave
        with append_to(self.events_file) as file:
            end = file.seek(0, os.SEEK_END)
            if file.write(line) < len(line):
                file.truncate(end)  # a torn line would take the next one with it
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.events_file))

    def read_events(self) -> list[dict[str, Any]]:
        """Every complete line; a last line torn by a kill is left out.

        A LeftOutWarning counts whatever else is no event.
        """
        if not self.events_file.exists():
            return []
        events, wrong = [], []
        text = read_file(self.events_file).decode(errors="replace")
        *lines, torn = text.split("\n")
        for number, line in enumerate([*lines, torn], start=1):
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                event = None
            if isinstance(event, dict):
                events.append(event)
            elif number <= len(lines):
                wrong.append(number)
        if wrong:
            left_out(self.events_file, f"no events; the first is {wrong[0]}", f"{len(wrong)} lines")
        return events

    def trim_events(self, step: int) -> None:
        """Drop what was observed at or after `step`, and any torn line, before a resumed run."""
        lifecycle = ("start", "resume", "preempted", "done", "failed")

        def is_kept(event: dict[str, Any]) -> bool:
            at = event.get("step")
            return event.get("kind") in lifecycle or not isinstance(at, int) or at < step

        kept = [event for event in self.read_events() if is_kept(event)]
        atomic_write(self.events_file, "".join(json.dumps(e) + "\n" for e in kept).encode())

    @contextmanager
    def lock(self) -> Iterator[HeldFolder]:
        """Hold the run for this process; the kernel releases it when the process dies.

        Removes what a killed process left half written. Raises RunBusyError when another process
        holds the run, LinkedError where a link in the folder would lead its writes elsewhere.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        folders = [self.path / name for name in (*TABLES, "checkpoints")]
        for path in (*folders, self.events_file, self.log_file, self.path / ".lock"):
            refuse_link(path)
        with append_to(self.path / ".lock") as file:
            # a few tries, since `is_busy` elsewhere takes the lock for an instant to look
            for last in (False,) * 20 + (True,):
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if last:
                        message = f"{self.path}: another process is writing here"
                        raise RunBusyError(message) from None
                    time.sleep(0.02)
            for folder in (self.path, *folders):
                remove_dead(folder)
            process = os.getpid()
            try:
                yield HeldFolder(self.path)
            finally:
                # A process forked meanwhile, such as a loader's worker, has the lock too. Release
                # it for all of them, and only here.
                if os.getpid() == process:
                    fcntl.flock(file, fcntl.LOCK_UN)

    def is_busy(self) -> bool:
        """Whether a live process on this machine holds the run."""
        try:
            file = os.open(self.path / ".lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:  # none, or none that a run has made
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(file)
        return False
