"""A run's folder: its paths, atomic writes, the lock, the status file and the event log."""

import errno
import fcntl
import json
import math
import os
import socket
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

State = Literal["waiting", "running", "preempted", "done", "failed"]
Standing = Literal["missing", "waiting", "running", "preempted", "lost", "done", "failed"]

# A running process writes its status every step. An evaluation or a slow disk may hold it up for
# minutes; whoever cannot see the process itself calls it lost after this long.
LOST_AFTER_S = 600.0


TABLES = ("layers", "scalars", "evals")  # one of them, or a config.yaml, makes a folder a run


class LeftOutWarning(UserWarning):
    """Something damaged, foreign or there twice was left out; the message names it and says why."""


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
            # no number where a number would be NaN or infinite: the others are as good
            text = self.status_file.read_text(encoding="utf-8")
            return _status(json.loads(text, parse_constant=lambda _: None))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, RecursionError, IsADirectoryError) as error:
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
        line = (json.dumps(event) + "\n").encode()
        # one write, so lines never interleave
        with self.events_file.open("ab", buffering=0) as file:
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
        text = self.events_file.read_text(encoding="utf-8", errors="replace")
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
            process = os.getpid()
            try:
                yield
            finally:
                # a process forked meanwhile, as a loader's worker, has the lock too: let go of it
                # for all, and only here
                if os.getpid() == process:
                    fcntl.flock(file, fcntl.LOCK_UN)

    def is_busy(self) -> bool:
        """Whether a live process on this machine holds the run."""
        try:
            with (self.path / ".lock").open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except (FileNotFoundError, IsADirectoryError, PermissionError):
            return False
        return False


def left_out(what: Path, why: str, part: str = "") -> None:
    """Warn that `what`, or a part of it, is left out."""
    warnings.warn(f"{what}: {part}{' ' * bool(part)}left out, {why}", LeftOutWarning, stacklevel=3)


def _status(content: Any) -> Status:
    """Raises TypeError that says which value is of another kind than it should."""
    if not isinstance(content, dict):
        raise TypeError("no JSON object")
    status = Status(**{k: content[k] for k in Status.__dataclass_fields__ if k in content})
    for name, kinds in _KINDS.items():
        value = getattr(status, name)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise TypeError(f"{name} is {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise TypeError(f"{name} is {value}")
    if status.state not in get_args(State):
        raise TypeError(f"state is {status.state!r}")
    if not all(type(count) is int for count in status.events.values()):
        raise TypeError(f"events is {status.events!r}")
    return status


_NUMBER = (int, float, type(None))
_KINDS: dict[str, Any] = {
    "state": str,
    "step": int,
    "steps": int,
    "heartbeat": str,
    "host": str,
    "images_per_s": _NUMBER,
    "eta_s": _NUMBER,
    "knn": _NUMBER,
    "reason": (str, type(None)),
    "events": dict,
}


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
    """Every run folder at or below `folder`, in name order. Raises FileNotFoundError.

    A folder that links lead to a second time, or that may not be read, is named in a
    LeftOutWarning.
    """
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: no such folder")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: a file, where a folder of runs was expected")
    return sorted(_walk(folder, {}))


def _walk(folder: Path, seen: dict[tuple[int, int], Path]) -> Iterator[Path]:
    """`seen`: the folders walked so far by their device and inode."""
    try:
        entries = {entry.name: entry for entry in os.scandir(folder)}
        stat = folder.stat()
    except OSError as error:
        left_out(folder, f"not readable ({error.strerror})")
        return
    first = seen.setdefault((stat.st_dev, stat.st_ino), folder)
    if first is not folder:
        left_out(folder, f"it is the folder {first}")
        return
    if "config.yaml" in entries or any(_is_table(entries[n]) for n in TABLES if n in entries):
        yield folder
        return
    # links last, so that of a folder and a link to it beside it the folder is taken
    for name in sorted(entries, key=lambda name: (entries[name].is_symlink(), name)):
        if not name.startswith(".") and _is_dir(entries[name]):
            yield from _walk(folder / name, seen)


def _is_table(entry: "os.DirEntry[str]") -> bool:
    """Not so a run, or a folder of runs, that is called as a table is."""
    try:
        with os.scandir(entry.path) as parts:
            inside = [(part.name, part.is_dir()) for part in parts]
    except OSError:  # a file, or not readable: whoever reads the run says so
        return True
    return not any(is_dir or name == "config.yaml" for name, is_dir in inside)


def _is_dir(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def utc_now() -> str:
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")
