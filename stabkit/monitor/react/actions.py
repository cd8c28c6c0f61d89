"""What is done about an event: the actions that `Monitor.on` was asked for."""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from stabkit.detect.online_dips import State
from stabkit.monitor.react.events import OnlineEvent
from stabkit.monitor.torch_files import write_tensors
from stabkit.notify import Notifier, check_target, is_target
from stabkit.printing import first_of
from stabkit.rundir import RunDir, make_inside
from stabkit.store.background import Background

WORDS = ("log", "mark", "checkpoint", "stop")
Action = Callable[[OnlineEvent], Any] | str

_log = logging.getLogger("stabkit")


class Actions:
    """Does what was asked for about an event of a kind, in the state that was asked for.

    `out`: the writer of events, None in every process but the first.
    """

    def __init__(
        self,
        rundir: RunDir,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        now: Callable[[], int],
        out: Background | None,
        strict: bool,
    ) -> None:
        self.rundir, self.model, self.optimizers = rundir, model, optimizers
        self.should_stop = False
        self._now, self._out, self._strict = now, out, strict
        self._asked: dict[str, list[tuple[Action, State]]] = {}
        self._warned: set[str] = set()
        self._saved_at = -1
        self._notifier = Notifier(self._notify_failed)

    @property
    def kinds(self) -> set[str]:
        """The kinds of event for which an action was asked for."""
        return set(self._asked)

    def add(self, kind: str, action: Action, state: State) -> None:
        """Ask for `action` on events of `kind` when they reach `state`."""
        if is_target(action):
            check_target(str(action))
        elif not callable(action) and action not in WORDS:
            raise ValueError(
                f"on: the action must be a function of one event, one of {', '.join(WORDS)}, "
                f"webhook:URL or command: WORDS, got {action!r}"
            )
        if action == "mark" and state != "confirmed":
            raise ValueError("on: mark is for confirmed events; leave out suspected=True")
        self._asked.setdefault(kind, []).append((action, state))

    def act(self, event: OnlineEvent, only: Sequence[str] = WORDS) -> None:
        """Do what was asked for about the event. With `only`, do these words and no functions.

        Alerts are always sent.
        """
        for number, (action, state) in enumerate(self._asked.get(event.kind, [])):
            if state != event.state:
                continue
            if isinstance(action, str) and is_target(action):
                self._alert(action, event)
                continue
            if only != WORDS and action not in only:
                continue
            try:
                if isinstance(action, str):
                    getattr(self, f"_{action}")(event)
                else:
                    action(event)
            except Exception as error:
                if self._strict:
                    raise
                self.write("action_failed", event.step, cause=event.kind, error=text(error))
                key = f"{event.kind} {number}"
                self.warn(key, "the action on %s failed: %s", event.kind, text(error))

    def write(self, kind: str, step: int | None, **facts: Any) -> None:
        """Write a line to the event log."""
        if self._out is not None:
            self._out.event(kind, step, **{name: _plain(value) for name, value in facts.items()})

    def warn(self, key: str, message: str, *parts: Any) -> None:
        """Warn once for each key."""
        if key not in self._warned:
            self._warned.add(key)
            _log.warning(message, *parts)

    def close(self) -> None:
        """Give the alerts under way a few seconds."""
        self._notifier.wait()

    def _alert(self, target: str, event: OnlineEvent) -> None:
        if self._out is None:  # another process sends it
            return
        facts = {name: _plain(value) for name, value in event.facts.items()}
        self._notifier.send(
            target,
            {
                "text": f"stabkit: {self.rundir.path.name}: {_words(event)}",
                "run": str(self.rundir.path),
                "kind": event.kind,
                "state": event.state,
                "step": event.step,
                "layer": event.layer,
                "facts": facts,
            },
        )

    def _notify_failed(self, reason: str) -> None:
        self.write("alert_failed", None, reason=reason)
        _log.warning("stabkit: %s: %s; training goes on", self.rundir.path, reason)

    def _log(self, event: OnlineEvent) -> None:
        if self._out is not None:
            _log.warning("%s", _words(event))

    def _mark(self, event: OnlineEvent) -> None:
        self.write("unstable", event.step, cause=event.kind, layer=event.layer, **event.facts)

    def _checkpoint(self, event: OnlineEvent) -> None:
        now = self._now()
        path = self.rundir.path / "checkpoints" / f"event-{now}.pt"
        if now != self._saved_at:  # several events found together: the same weights
            # on every process, as a state may be gathered from all of them
            content = {
                "step": now,
                "model": self.model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            }
            if self._out is not None:
                self._out.writer.check_folder()
                make_inside(path.parent)
                write_tensors(content, path)
            self._saved_at = now
        self.write("saved", event.step, cause=event.kind, file=f"checkpoints/{path.name}")

    def _stop(self, event: OnlineEvent) -> None:
        self.should_stop = True
        self.write("stop", event.step, cause=event.kind, asked_at=self._now())


def text(error: Exception) -> str:
    """Return the class and the message of an error."""
    return f"{type(error).__name__}: {error}"


def _words(event: OnlineEvent) -> str:
    """Return an event as one line."""
    state = "" if event.state == "confirmed" else f"{event.state} "
    facts, where = event.facts, f" in {event.layer}" if event.layer else ""
    also = _listed([layer for layer in facts.get("layers", []) if layer != event.layer])
    at = f"at step {event.step:,}"
    told = {
        "dip": "dip of {depth:.1f} points in {metric} from step {step:,} on, seen at {found_at:,}",
        "spike": "spike of {signal} {at}{where}: {ratio:.3g} times what was expected{also}",
        "departure": "{signal} left its best level {at}: {best:.3g} to {level:.3g}",
        "stale_moments": "stale moments {at}{where}: the gradient is {surprise:.3g} times what "
        "Adam's second moment expects{also}",
        "nonfinite": "{signal} not finite {at}{where}{also}",
        "collapse": "collapse {at}: {signal} from {start:.3g} to {level:.3g}",
    }[event.kind]
    words = {**facts, "at": at, "where": where, "also": also, "step": event.step}
    if "depth" in facts:
        words["depth"] = 100 * facts["depth"]
    return state + told.format(**words)


def _listed(layers: Sequence[str]) -> str:
    return f", also in {first_of(layers, 3)}" if layers else ""


def _plain(value: Any) -> Any:
    """Return the value for JSON, which has no infinity and no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
