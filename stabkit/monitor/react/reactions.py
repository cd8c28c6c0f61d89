"""What a Monitor does about an event: nothing, unless asked with `on`."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from stabkit.detect.robust import BoolArray, IntArray
from stabkit.monitor.measure.rows import Rows
from stabkit.monitor.ranks import rank, world_size
from stabkit.monitor.react.recall import recalled_evals, recalled_rows
from stabkit.monitor.react.watches import (
    CollapseWatch,
    DipWatch,
    NonfiniteWatch,
    OnlineEvent,
    SpikeWatch,
    StaleMomentsWatch,
    Watch,
    beta2_of_layers,
    updates_made,
)
from stabkit.monitor.torch_files import write_tensors
from stabkit.rundir import RunDir
from stabkit.store.background import Background

KINDS = ("nonfinite", "spike", "stale_moments", "collapse", "dip")
WORDS = ("log", "mark", "checkpoint", "stop")
Action = Callable[[OnlineEvent], Any] | str
_WATCHES: dict[str, Callable[[], Watch]] = {
    "nonfinite": NonfiniteWatch,
    "spike": SpikeWatch,
    "collapse": CollapseWatch,
    "dip": DipWatch,
}

_log = logging.getLogger("stabkit")


class Reactions:
    """Runs the online detectors that were asked for, and acts on the events they find.

    Rows reach the host an interval late, so an action comes one to two intervals after the event's
    step (50 to 100 steps at the default `flush_every`). A dip shows at its second low evaluation.
    If nothing was asked for, nothing runs.

    Where several processes train one model, only the first has rows and finds events. All must
    call `on` with the same kinds and actions in the same order; they then act on the same events
    at the same step, in `agree`.

    `layers`: the parameters of each layer, in depth order. `now`: updates made so far. `out`: the
    writer of events, None in every process but the first.
    """

    def __init__(
        self,
        rundir: RunDir,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        layers: Mapping[str, Sequence[Tensor]],
        now: Callable[[], int],
        out: Background | None,
        strict: bool = False,
    ) -> None:
        self.rundir, self.model, self.optimizers = rundir, model, list(optimizers)
        self.should_stop = False
        self.marks: dict[str, int] = {}  # how many events of each kind were marked
        self._layers, self._now, self._out, self._strict = layers, now, out, strict
        self._actions: dict[str, list[Action]] = {}
        self._watches: dict[str, Watch] = {}
        self._failed: set[str] = set()
        self._last: dict[str, int] = {}  # step up to which the layers, or a scalar, were seen
        self._waiting: list[OnlineEvent] = []
        self._group: dist.ProcessGroup | None = None
        self._saved_at = -1

    @property
    def asked(self) -> bool:
        """Whether an action was asked for."""
        return bool(self._actions)

    def on(self, kind: str, action: Action) -> None:
        """Do `action` once for every event of `kind`, after those registered before it.

        Kinds: "nonfinite" (gradients or loss), "spike" (grad_norm of layers, loss),
        "stale_moments" (needs the signal adam_rms), "collapse" (spread and rank of
        features, of the model or its teacher), "dip" (an evaluated accuracy).

        Actions: a function of the `OnlineEvent`, or a word:
        - "log": one line, as a warning of the logger "stabkit";
        - "mark": an event `unstable` in events.jsonl, with its cause, and counted in the status;
        - "checkpoint": model and optimizers as they are then, in checkpoints/event-<step>.pt with
          <step> the updates they have seen; every process must hold the whole of them;
        - "stop": `should_stop` becomes true.

        An action that raises is recorded as an event `action_failed` and training goes on.
        Raises ValueError for another kind or word.
        """
        if kind not in KINDS:
            raise ValueError(f"on: unknown event kind {kind!r}; there are {', '.join(KINDS)}")
        if not callable(action) and action not in WORDS:
            raise ValueError(
                f"on: the action must be a function of one event or one of {', '.join(WORDS)}, "
                f"got {action!r}"
            )
        if kind == "stale_moments" and not beta2_of_layers(self._layers, self.optimizers):
            raise ValueError(
                "on: stale_moments needs Adam's moments, and none of the optimizers has betas: "
                f"{', '.join(type(o).__name__ for o in self.optimizers)}"
            )
        self._actions.setdefault(kind, []).append(action)

    def rows(self, rows: Rows) -> None:
        """Find the events in an interval's rows, and act on them."""
        if self.asked:
            self.react(self.find(rows))

    def find(self, rows: Rows) -> list[OnlineEvent]:
        """Return the events of the kinds asked for in an interval's rows, in order of steps.

        Steps that were seen before, as after a training went back, are left out, and so are steps
        that a GradScaler skipped.
        """
        if not self.asked:
            return []
        known = dict(rows.measured)
        if rows.skipped is not None:
            known = {name: measured & ~rows.skipped[:, None] for name, measured in known.items()}
        new = self._is_new("", rows.steps)
        fresh = {name: self._is_new(name, at) for name, (at, _) in rows.scalars.items()}
        unseen = Rows(
            rows.steps[new],
            rows.layers,
            {name: table[new] for name, table in rows.values.items()},
            {name: table[new] for name, table in known.items()},
            {name: (at[fresh[name]], v[fresh[name]]) for name, (at, v) in rows.scalars.items()},
        )
        first = int(rows.steps[0]) if len(rows.steps) else self._now()
        found = []
        for kind in [kind for kind in KINDS if kind in self._actions]:
            found += self._found(kind, partial(self._events, kind, first, unseen))
        return sorted(found, key=lambda event: event.step)

    def evaluated(
        self, step: int, metric: str, correct: BoolArray, chance: float
    ) -> list[OnlineEvent]:
        """Return the dips that the evaluation after `step` updates shows.

        `correct` [n], always of the same samples.
        """
        if "dip" not in self._actions:
            return []

        def dips() -> list[OnlineEvent]:
            watch = self._watch("dip", step)
            assert isinstance(watch, DipWatch)
            return watch.evaluated([step], metric, [correct], chance)

        return self._found("dip", dips)

    def react(self, events: Sequence[OnlineEvent]) -> None:
        """Act on events; where several processes train, the first keeps them until `agree`."""
        if world_size() > 1:
            self._waiting += events if rank() == 0 else []
            return
        for event in events:
            self._act(event)

    def agree(self) -> None:
        """Act on the first process's events in every process; call it at the same step in each.

        Waits for the first process's host, never for a device.
        """
        if not self.asked or world_size() == 1:
            return
        if self._group is None:
            group = dist.new_group(backend="gloo")  # on the host, whatever the training's is
            assert isinstance(group, dist.ProcessGroup)
            self._group = group
        box = [self._waiting]
        dist.broadcast_object_list(box, src=0, group=self._group)
        self._waiting = []
        for event in box[0]:
            self._act(event)

    def close(self) -> None:
        """Log and mark the events for which no `agree` comes any more: one process can do that."""
        waiting, self._waiting = self._waiting, []
        for event in waiting:
            self._act(event, only=("log", "mark"))

    def _events(self, kind: str, first: int, rows: Rows) -> list[OnlineEvent]:
        return self._watch(kind, first).rows(rows)

    def _watch(self, kind: str, first: int) -> Watch:
        """Return the detector of a kind; a new one is first fed what the folder holds."""
        if kind not in self._watches:
            watch = self._watches[kind] = self._new_watch(kind)
            for metric, steps, correct, chance in recalled_evals(self.rundir, kind, first):
                assert isinstance(watch, DipWatch)
                watch.evaluated(steps, metric, correct, chance)
            rows, in_nonfinite = recalled_rows(self.rundir, kind, first)
            if rows is not None:
                watch.rows(rows)
            if isinstance(watch, NonfiniteWatch) and in_nonfinite:
                watch.begin_within()
        return self._watches[kind]

    def _new_watch(self, kind: str) -> Watch:
        if kind == "stale_moments":
            made = updates_made(self.optimizers)
            # unknown is taken for many, which flags less
            first_update = -(10**9) if made is None else self._now() - made
            return StaleMomentsWatch(beta2_of_layers(self._layers, self.optimizers), first_update)
        return _WATCHES[kind]()

    def _found(self, kind: str, find: Callable[[], list[OnlineEvent]]) -> list[OnlineEvent]:
        if kind in self._failed:
            return []
        try:
            return find()
        except Exception as error:
            if self._strict:
                raise
            self._warn(
                kind, "the search for %s failed and is off from here: %s", kind, _text(error)
            )
            self._write("detector_failed", None, cause=kind, error=_text(error))
            return []

    def _is_new(self, name: str, steps: IntArray) -> BoolArray:
        seen = np.maximum.accumulate([self._last.get(name, -1), *steps.tolist()])
        self._last[name] = int(seen[-1])
        return np.asarray(steps > seen[:-1], dtype=bool)

    def _act(self, event: OnlineEvent, only: Sequence[str] = WORDS) -> None:
        for number, action in enumerate(self._actions.get(event.kind, [])):
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
                self._write("action_failed", event.step, cause=event.kind, error=_text(error))
                key = f"{event.kind} {number}"
                self._warn(key, "the action on %s failed: %s", event.kind, _text(error))

    def _log(self, event: OnlineEvent) -> None:
        if self._out is not None:
            where = f" in {event.layer}" if event.layer else ""
            facts = ", ".join(f"{name} {_short(value)}" for name, value in event.facts.items())
            _log.warning("%s at step %d%s: %s", event.kind, event.step, where, facts)

    def _mark(self, event: OnlineEvent) -> None:
        self.marks[event.kind] = self.marks.get(event.kind, 0) + 1
        facts = {name: _plain(value) for name, value in event.facts.items()}
        self._write("unstable", event.step, cause=event.kind, layer=event.layer, **facts)

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
                write_tensors(content, path)
            self._saved_at = now
        self._write("saved", event.step, cause=event.kind, file=f"checkpoints/{path.name}")

    def _stop(self, event: OnlineEvent) -> None:
        self.should_stop = True
        self._write("stop", event.step, cause=event.kind, asked_at=self._now())

    def _write(self, kind: str, step: int | None, **facts: Any) -> None:
        if self._out is not None:
            self._out.event(kind, step, **facts)

    def _warn(self, key: str, message: str, *parts: Any) -> None:
        """Warn once for each key."""
        if key not in self._failed:
            self._failed.add(key)
            _log.warning(message, *parts)


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value[:3])) + f" and {len(value) - 3} more" * (len(value) > 3)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    """Return the value for JSON, which has no infinity and no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
