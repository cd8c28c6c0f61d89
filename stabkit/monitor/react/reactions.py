"""Looks for events while a run trains, and acts on those that were asked for with `on`."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from stabkit.detect.lr_restarts import OnlineRestarts
from stabkit.detect.robust import BoolArray
from stabkit.monitor.measure.rows import Rows
from stabkit.monitor.ranks import rank, world_size
from stabkit.monitor.react.actions import Action, Actions, text
from stabkit.monitor.react.dip_watch import DipWatch
from stabkit.monitor.react.events import OnlineEvent
from stabkit.monitor.react.moments import beta2_of_layers, updates_made
from stabkit.monitor.react.recall import (
    confirmed_before,
    recalled_evals,
    recalled_rates,
    recalled_rows,
)
from stabkit.monitor.react.unseen import Unseen
from stabkit.monitor.react.watches import (
    CollapseWatch,
    DepartureWatch,
    NonfiniteWatch,
    SpikeWatch,
    StaleMomentsWatch,
    Watch,
)
from stabkit.rundir import RunDir
from stabkit.store.background import Background

KINDS = ("nonfinite", "spike", "departure", "stale_moments", "collapse", "dip")
_WATCHES: dict[str, Callable[[], Watch]] = {
    "nonfinite": NonfiniteWatch,
    "spike": SpikeWatch,
    "departure": DepartureWatch,
    "collapse": CollapseWatch,
}


class Reactions:
    """Runs the online detectors that were asked for, and acts on the events they find.

    Rows reach the host an interval late, so an action comes one to two intervals after the event's
    step (50 to 100 steps at the default `flush_every`). A dip is suspected at its second low
    evaluation and confirmed eight later (`stabkit.detect.online_dips`). Confirmed events are
    counted. Nothing else runs than what was asked for; with `counts_dips`, dips are looked for
    anyway, at evaluations alone.

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
        counts_dips: bool = False,
    ) -> None:
        self.rundir, self.optimizers = rundir, list(optimizers)
        self._layers, self._now, self._strict = layers, now, strict
        self._actions = Actions(rundir, model, self.optimizers, now, out, strict)
        self.counts: dict[str, int] = {}  # confirmed events of each kind
        self._counts_dips = counts_dips
        self._watches: dict[str, Watch] = {}
        self._failed: set[str] = set()  # kinds whose detector failed
        self._unseen = Unseen()
        self._restarts = OnlineRestarts()
        self._known: set[tuple[object, ...]] = set()  # what was confirmed before a resume
        self._waiting: list[OnlineEvent] = []
        self._group: dist.ProcessGroup | None = None

    @property
    def asked(self) -> bool:
        """Whether an action was asked for."""
        return bool(self._actions.kinds)

    @property
    def kinds(self) -> Collection[str]:
        """The kinds for which an action was asked."""
        return self._actions.kinds

    @property
    def should_stop(self) -> bool:
        """Whether "stop" was asked for, and its event came."""
        return self._actions.should_stop

    def on(self, kind: str, action: Action, *, suspected: bool = False) -> None:
        """Do `action` once for every confirmed event of `kind`, after those asked for before it.

        Kinds: "nonfinite" (gradients or losses), "spike" (grad_norm of layers, losses),
        "departure" (a loss stands at twice its best level for some 50 values, as it diverges),
        "stale_moments" (needs the signal adam_rms, and sees only full steps: give the Monitor
        full_every=1 for all), "collapse" (spread and rank of features, of the model or its
        teacher: needs a probe with such a signal, or a series that the loop logs), "dip" (an
        accuracy evaluated with `log_eval` or `knn`).

        Actions: a function of the `OnlineEvent`, or a word:
        - "log": one line, as a warning of the logger "stabkit";
        - "mark": an event `unstable` in events.jsonl, with its cause;
        - "checkpoint": model and optimizers as they are then, in checkpoints/event-<step>.pt with
          <step> the updates they have seen; every process must hold the whole of them;
        - "stop": `should_stop` becomes true;
        - "webhook:URL": a JSON object of the event is posted there;
        - "command: WORDS": the command is started, without a shell, and gets that object on its
          standard input, and its values as STABKIT_KIND, STABKIT_STEP, STABKIT_TEXT and so on.

        Webhooks and commands are sent from a thread of their own, by the first process alone. A
        failure is reported once, and none of them ever holds up the training.

        A dip is confirmed eight evaluations after it was first seen, because one that is only
        suspected may turn out to be noise. A spike is confirmed when it stands out from the noise
        of the run so far, which the largest do at once. `suspected=True` does the action as soon as
        a dip or a spike is suspected. All other events are certain when they are found.

        An action that raises is recorded as an event `action_failed` and training goes on.
        Raises ValueError for another kind or word, and for `suspected` with another kind.
        """
        if kind not in KINDS:
            raise ValueError(f"on: unknown event kind {kind!r}; there are {', '.join(KINDS)}")
        if suspected and kind not in ("dip", "spike"):
            raise ValueError(
                "on: suspected=True is for dips and spikes; "
                f"{kind} is confirmed as soon as it is found"
            )
        if kind == "stale_moments" and not beta2_of_layers(self._layers, self.optimizers):
            raise ValueError(
                "on: stale_moments needs Adam's moments, and none of the optimizers has betas: "
                f"{', '.join(type(o).__name__ for o in self.optimizers)}"
            )
        self._actions.add(kind, action, "suspected" if suspected else "confirmed")

    def recall(self) -> None:
        """Count what was confirmed before a resume, so that it is neither forgotten nor told twice.

        The log has it. Dips are searched for again too, where they are counted: a process that
        counted none may have made the evaluations.
        """
        before = [event for event in confirmed_before(self.rundir) if event.kind != "dip"]
        self._known = {_identity(event) for event in before}
        self._count(before)
        for step, rate in recalled_rates(self.rundir, self._now()):
            self._restarts.add(step, rate)
        if self._counts_dips:
            self._found("dip", self._recall_dips)

    def row_opened(self, step: int) -> None:
        """Look at the learning rate of a step, the highest of all groups, for restarts.

        Rows come too late for that. A rate in a tensor would have to be waited for, and is unknown.
        """
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        rates = [group["lr"] for group in groups if isinstance(group.get("lr"), int | float)]
        if rates:
            self._restarts.add(step, float(max(rates)))

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
        unseen = self._unseen.of(rows)
        first = int(rows.steps[0]) if len(rows.steps) else self._now()
        found = []
        for kind in [kind for kind in KINDS if kind in self._actions.kinds]:
            found += self._found(kind, partial(self._events, kind, first, unseen))
        new = [event for event in found if _identity(event) not in self._known]
        for event in new:
            if event.state == "confirmed":
                # with the step of its onset: a run that goes on from there or later has the rows
                # that showed it, and does not see them again
                where = {} if event.layer is None else {"layer": event.layer}
                facts = {"cause": event.kind, "onset": event.step} | where | event.facts
                self._actions.write("confirmed", event.step, **facts)
        return sorted(new, key=lambda event: event.step)

    def evaluated(
        self, step: int, metric: str, correct: BoolArray, chance: float
    ) -> list[OnlineEvent]:
        """Return the dips whose state the evaluation after `step` updates changes.

        `correct` [n], always of the same samples. Each change is a line of the event log.
        """
        if "dip" not in self._actions.kinds and not self._counts_dips:
            return []

        def dips() -> list[OnlineEvent]:
            watch = self._watch("dip", step)
            assert isinstance(watch, DipWatch)
            return watch.evaluated([step], metric, [correct], chance)

        found = self._found("dip", dips)
        self._write_states(found, step)
        return found

    def finish(self) -> None:
        """Confirm or withdraw what is still suspected, as the run is over, and act on it."""
        watch = self._watches.get("dip")
        if isinstance(watch, DipWatch):
            found = self._found("dip", watch.finish)
            # with the last step that was made: a run that goes on after it knows what was told
            self._write_states(found, max(self._now() - 1, 0))
            self.react(found)
        self.close()

    def react(self, events: Sequence[OnlineEvent]) -> None:
        """Count events and act on them; the first of several processes keeps them until `agree`."""
        self._count(events)
        if world_size() > 1:
            self._waiting += events if rank() == 0 else []
            return
        for event in events:
            self._actions.act(event)

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
            self._actions.act(event)

    def close(self) -> None:
        """Log and mark the events for which no `agree` comes any more: one process can do that."""
        waiting, self._waiting = self._waiting, []
        for event in waiting:
            self._actions.act(event, only=("log", "mark"))
        self._actions.close()

    def _count(self, events: Sequence[OnlineEvent]) -> None:
        for event in events:
            if event.state == "confirmed":
                self.counts[event.kind] = self.counts.get(event.kind, 0) + 1

    def _events(self, kind: str, first: int, rows: Rows) -> list[OnlineEvent]:
        return self._watch(kind, first).rows(rows)

    def _watch(self, kind: str, first: int) -> Watch:
        """Return the detector of a kind; a new one is first fed what the folder holds."""
        if kind not in self._watches:
            watch = self._watches[kind] = self._new_watch(kind)
            if isinstance(watch, DipWatch):
                before = [event for event in confirmed_before(self.rundir) if event.kind == kind]
                self._count(before)
                watch.know(before)
                for metric, steps, correct, chance in recalled_evals(self.rundir, first):
                    self._count(watch.evaluated(steps, metric, correct, chance))
            rows, in_nonfinite = recalled_rows(self.rundir, kind, first)
            if rows is not None:
                watch.rows(rows)
            if isinstance(watch, NonfiniteWatch) and in_nonfinite:
                watch.begin_within()
        return self._watches[kind]

    def _recall_dips(self) -> list[OnlineEvent]:
        self._watch("dip", self._now())
        return []

    def _new_watch(self, kind: str) -> Watch:
        if kind == "stale_moments":
            made = updates_made(self.optimizers)
            # unknown is taken for many, which flags less
            first_update = -(10**9) if made is None else self._now() - made
            return StaleMomentsWatch(beta2_of_layers(self._layers, self.optimizers), first_update)
        return DipWatch(self._restarts) if kind == "dip" else _WATCHES[kind]()

    def _found(self, kind: str, find: Callable[[], list[OnlineEvent]]) -> list[OnlineEvent]:
        if kind in self._failed:
            return []
        try:
            return find()
        except Exception as error:
            if self._strict:
                raise
            self._failed.add(kind)
            message = "the search for %s failed and is off from here: %s"
            self._actions.warn(kind, message, kind, text(error))
            self._actions.write("detector_failed", None, cause=kind, error=text(error))
            return []

    def _write_states(self, events: Sequence[OnlineEvent], step: int) -> None:
        """Write each change of a state with the step at which it was seen, not that of its event.

        So a run that is resumed from an earlier step forgets it, and sees it again.
        """
        for event in events:
            facts = {name: v for name, v in event.facts.items() if name != "found_at"}
            self._actions.write(event.state, step, cause=event.kind, onset=event.step, **facts)


def _identity(event: OnlineEvent) -> tuple[object, ...]:
    """Return what tells an event from every other one of its run."""
    where = () if event.kind == "nonfinite" else (event.layer, event.facts.get("signal"))
    return (event.kind, event.step, *where)
