"""A run's folder: its paths, atomic writes, the lock, the status file and the event log."""

import fcntl
import json
import os
import socket
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

State = Literal["waiting", "running", "preempted", "done", "failed"]
Standing = Literal["missing", "waiting", "running", "preempted", "lost", "done", "failed"]

# A running process writes its status every step. An evaluation or a slow disk may hold it up for
# minutes; whoever cannot see the process itself calls it lost after this long.
LOST_AFTER_S = 600.0


class RunBusyError(RuntimeError):
    """Another live process is writing this run."""


@dataclass(frozen=True)
class Status:
    """What `status.json` holds. `step` of `steps` are done; `heartbeat` is a UTC time stamp.

    `preempted`: stopped by a signal, with everything saved. `events`: how many of each kind so far.
    """

    state: State
    step: int = 0
    steps: int = 0
    heartbeat: str = ""
    host: str = ""
    images_per_s: float | None = None
    eta_s: float | None = None
    knn: float | None = None
    reason: str | None = None
    events: dict[str, int] = field(default_factory=dict)


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
            content = json.loads(self.status_file.read_text(encoding="utf-8"))
            return Status(**{k: content[k] for k in Status.__dataclass_fields__ if k in content})
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.status_file}: not a status file ({error})") from None

    def last_status(self) -> Status | None:
        """None as well when a crash of the machine tore it: the checkpoint says where to go on."""
        try:
            return self.read_status()
        except ValueError:
            return None

    def write_status(self, status: Status) -> None:
        """Raises FileNotFoundError when the folder is gone: it is never made anew by its run."""
        if not self.path.is_dir():
            raise FileNotFoundError(f"{self.path}: the run's folder was deleted or moved")
        content = asdict(status) | {"heartbeat": utc_now(), "host": socket.gethostname()}
        # a heartbeat comes again in a second; a last word does not
        durable = status.state != "running"
        atomic_write(self.status_file, json.dumps(content).encode(), durable)

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
        return "running" if _heard_of(status) else "lost"

    def read_meta(self) -> dict[str, Any]:
        if not self.meta_file.exists():
            return {}
        content = json.loads(self.meta_file.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}

    def write_meta(self, meta: dict[str, Any]) -> None:
        atomic_write(self.meta_file, json.dumps(meta, indent=1).encode())

    def append_event(self, kind: str, step: int | None = None, **facts: Any) -> None:
        """One line: when, what (`start`, `resume`, `done`, `nonfinite`, …), at which step."""
        event = {"time": utc_now(), "kind": kind} | ({} if step is None else {"step": step}) | facts
        line = json.dumps(event) + "\n"
        with self.events_file.open("ab") as file:  # one write, so lines never interleave
            file.write(line.encode())

    def read_events(self) -> list[dict[str, Any]]:
        """Every complete line; a last line torn by a kill is left out."""
        if not self.events_file.exists():
            return []
        events = []
        for line in self.events_file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                events.append(event)
        return events

    def trim_events(self, step: int) -> None:
        """Drop what was observed at or after `step`, and any torn line, before a resumed run."""
        lifecycle = {"start", "resume", "preempted", "done", "failed"}
        kept = [
            e for e in self.read_events() if e.get("kind") in lifecycle or e.get("step", -1) < step
        ]
        atomic_write(self.events_file, "".join(json.dumps(e) + "\n" for e in kept).encode())

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process; the kernel lets go of it when the process dies, however.

        Raises RunBusyError when another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("ab") as file:
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
            yield

    def is_busy(self) -> bool:
        """Whether a live process on this machine holds the run."""
        try:
            with (self.path / ".lock").open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False


def same_folder(path: Path) -> Callable[[], bool]:
    """Asks whether `path` is still the folder that it is now.

    Not so once it was deleted or moved, even if another has been made in its place.
    """
    held = os.open(path, os.O_RDONLY)  # while it is open no other folder gets its number

    def ask() -> bool:
        try:
            return os.path.samestat(path.stat(), os.fstat(held))
        except FileNotFoundError:
            return False

    weakref.finalize(ask, os.close, held)
    return ask


def _heard_of(status: Status) -> bool:
    """Whether a process on another machine wrote lately: its lock may not be seen from here."""
    if status.host in ("", socket.gethostname()):
        return False
    try:
        age = datetime.now(UTC) - datetime.fromisoformat(status.heartbeat)
    except (ValueError, TypeError):  # no time stamp, or one without a zone
        return False
    return age.total_seconds() < LOST_AFTER_S


def atomic_write(path: Path, content: bytes, durable: bool = True) -> None:
    """Replace `path` as a whole: a reader, or a kill at any time, finds the old or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    commit(temporary, path, durable)


def commit(temporary: Path, path: Path, durable: bool = True) -> None:
    """Rename a written and synced file into place, and make the rename itself durable."""
    os.replace(temporary, path)
    if durable:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def find_runs(folder: Path) -> list[Path]:
    """Every run folder at or below `folder`, in name order. Raises FileNotFoundError."""
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: no such folder")
    return sorted(_walk(folder))


def _walk(folder: Path) -> Iterator[Path]:
    if any((folder / mark).exists() for mark in ("config.yaml", "layers", "scalars", "evals")):
        yield folder
        return
    for child in folder.iterdir():
        if child.is_dir() and not child.name.startswith("."):
            yield from _walk(child)


def utc_now() -> str:
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")
