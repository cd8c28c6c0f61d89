"""Send a message about an event to a command or a web address, without making the caller wait.

A target is `webhook:https://...`, to which a JSON object is posted, or `command: ...`, which is
started without a shell and gets the same object on its standard input and as environment variables.
"""

import json
import os
import queue
import shlex
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from stabkit.printing import one_line

MOST_WAITING = 64  # messages; later ones are dropped, and that is said
WEBHOOK_S = 5.0  # for each of connecting, sending and the answer
COMMAND_S = 30.0  # then the command and what it started are killed
LAST_WAIT_S = 5.0  # how long the end of a training waits for messages under way


def is_target(action: object) -> bool:
    """Return whether a text is meant as a target."""
    return isinstance(action, str) and action.startswith(("webhook:", "command:"))


def check_target(target: str) -> None:
    """Raise ValueError for a target that nothing could be sent to."""
    kind, _, rest = target.partition(":")
    if kind == "webhook":
        parts = urlsplit(rest.strip())
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                "a webhook is an address that begins with http:// or https://, e.g. "
                f"webhook:https://example.org/hook; got one that begins with {rest.strip()[:8]!r}"
            )
    elif kind == "command":
        try:
            words = shlex.split(rest)
        except ValueError as error:
            raise ValueError(f"{target!r}: {error}") from error
        if not words:
            raise ValueError("a command has a name, e.g. command: notify-send stabkit")
    else:
        raise ValueError(f"{target!r}: a target is webhook:URL or command: WORDS")


def name_of(target: str) -> str:
    """Return a target without what may be secret: the path of an address, words of a command."""
    kind, _, rest = target.partition(":")
    if kind == "webhook":
        return f"webhook at {urlsplit(rest.strip()).hostname}"
    return f"command {shlex.split(rest)[0]}"


class Notifier:
    """Sends messages in the order they come, from a thread of its own.

    `send` never waits and never raises. `say` is called from the thread, once for each target that
    fails and once if messages are dropped because too many wait.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._said = say, set[str]()
        self._queue: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue(MOST_WAITING)
        self._thread: threading.Thread | None = None
        self._gave_up = False

    def send(self, target: str, message: Mapping[str, Any]) -> None:
        """Queue a message. Its values are what JSON can hold: numbers, text, lists, objects."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="stabkit-notify", daemon=True)
            self._thread.start()
        try:
            self._queue.put_nowait((target, dict(message)))
        except queue.Full:
            self._tell("full", f"more than {MOST_WAITING} alerts wait; the newest are dropped")

    def wait(self, seconds: float = LAST_WAIT_S) -> bool:
        """Wait for at most `seconds` until everything is sent; return whether it was.

        A call after one that waited in vain does not wait again.
        """
        deadline = time.monotonic() + (0.0 if self._gave_up else seconds)
        while self._queue.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.02)
        self._gave_up = bool(self._queue.unfinished_tasks)
        return not self._gave_up

    def _run(self) -> None:
        while True:
            target, message = self._queue.get()
            try:
                (_post if target.startswith("webhook:") else _start)(target, message)
            except Exception as error:
                self._tell(target, f"the {name_of(target)} failed: {_reason(error)}")
            finally:
                self._queue.task_done()

    def _tell(self, key: str, text: str) -> None:
        if key not in self._said:
            self._said.add(key)
            with suppress(Exception):  # the user's log handler may raise
                self._say(text)


def _reason(error: Exception) -> str:
    """Return why it failed, without the error's own text where that may contain the address."""
    if isinstance(error, urllib.error.HTTPError):
        return f"it answered {error.code}"
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError | subprocess.TimeoutExpired):
        return "it took too long"
    return one_line(str(reason)) or type(error).__name__


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Treats a redirect as a failure: urllib would follow it with a GET, without the message."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _post(target: str, message: Mapping[str, Any]) -> None:
    request = urllib.request.Request(  # the scheme was checked
        target.partition(":")[2].strip(),
        data=json.dumps(message).encode(),
        headers={"Content-Type": "application/json", "User-Agent": "stabkit"},
        method="POST",
    )
    opener = urllib.request.build_opener(_NoRedirect)
    with opener.open(request, timeout=WEBHOOK_S):
        pass  # the body of the answer is not needed


def _start(target: str, message: Mapping[str, Any]) -> None:
    """Run a command to its end. Raises OSError, TimeoutExpired, and RuntimeError for a failure."""
    words = shlex.split(target.partition(":")[2])
    process = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, **_variables(message)}, start_new_session=True,
    )  # fmt: skip
    try:
        process.communicate(f"{json.dumps(message)}\n".encode(), timeout=COMMAND_S)
    except BaseException:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # a group of its own, made above
        process.wait()
        raise
    if process.returncode:
        raise RuntimeError(f"it ended with exit code {process.returncode}")


def _variables(message: Mapping[str, Any]) -> dict[str, str]:
    """Return the message as environment variables, each value in one line: STABKIT_STEP, ..."""
    return {
        f"STABKIT_{name.upper()}": one_line(
            value if isinstance(value, str) else json.dumps(value)
        ).encode("utf-8", "backslashreplace").decode()
        for name, value in message.items()
        if value is not None
    }  # fmt: skip
