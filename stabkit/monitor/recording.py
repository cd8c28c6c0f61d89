"""What a Monitor does in one folder, from opening it to closing it."""

import atexit
import math
import os
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from stabkit.monitor.attach import Attachment
from stabkit.monitor.ending import NOT_CLOSED, PROCESS_END, End, error_in_hand
from stabkit.monitor.folder import OpenedFolder, checked_first_step, open_folder
from stabkit.monitor.guard import Guard
from stabkit.monitor.measure.evals import Evaluation, of_bits
from stabkit.monitor.measure.flush import RowFlusher
from stabkit.monitor.measure.instruments import make_instruments
from stabkit.monitor.measure.options import Options
from stabkit.monitor.measure.rows import RowReader
from stabkit.monitor.measure.scalars import Scalars
from stabkit.monitor.measure.step_rows import StepRows
from stabkit.monitor.param_groups import param_groups
from stabkit.monitor.ranks import rank
from stabkit.monitor.react.actions import Action
from stabkit.monitor.react.needs import check_needs, unseen
from stabkit.monitor.react.reactions import Reactions
from stabkit.monitor.settings import changes, earlier_settings, plain_settings, write_settings
from stabkit.rundir import RunDir, Status
from stabkit.store.schema import METRIC

STATUS_EVERY_S = 10.0
EVALUATED_TWICE = (
    "was evaluated twice after one step, and the first counts. Collect the batches of an "
    "evaluation and log it once"
)


class Recording:
    """Joins the parts of a Monitor: hooks, measuring, reactions and the folder.

    The hooks of the optimizers hold it, so that it goes on when nobody holds the Monitor any more.
    """

    def __init__(
        self, model: nn.Module, optimizers: Sequence[Optimizer], folder: Path, options: Options
    ) -> None:
        self.closed = True  # until everything below has succeeded
        self.error_before = id(error_in_hand())  # handled already, so not this training's failure
        settings = None if options.config is None else plain_settings(options.config)
        first_step = checked_first_step(options.first_step)
        run_id, strict = options.run_id, options.strict
        failed = self._signal_failed
        instruments = make_instruments(model, optimizers, options, failed)
        self.knn, self._full_every = instruments.knn, options.full_every
        of_layers = [signal.name for signal in instruments.measure.signals]
        self._measured = [*of_layers, *instruments.probing.signals]
        self.rundir, self.layers = RunDir(folder), list(instruments.layers)
        self._pid = os.getpid()
        self.attachment = Attachment(optimizers, options.scaler)
        # Only now is the folder touched: everything that can be refused was.
        opened = OpenedFolder(first_step or 0)
        before: dict[str, Any] = {}
        if rank() == 0:
            before = {} if settings is None else earlier_settings(self.rundir)
            opened = open_folder(self.rundir, self, first_step, run_id, strict)
        self._first_step, self._kept_evals = opened.step, opened.evaluated
        self.out = out = opened.out
        self.guard = Guard(self.rundir.path, out, strict, lambda: self.step)
        self.reactions = Reactions(
            self.rundir, model, optimizers, instruments.layers, lambda: self.step, out, strict,
            counts_dips=run_id is None,  # our own loop counts them itself
        )  # fmt: skip
        reader = RowReader(self.layers, instruments.derived, opened.in_nonfinite, failed)
        scalars = Scalars(opened.beta2)
        flusher = RowFlusher(
            instruments.measure, instruments.probing, scalars, reader, self.reactions.rows, out,
            options.samples_per_step,
        )  # fmt: skip
        self.rows = StepRows(
            opened.step, instruments, scalars, flusher, self.attachment, self.guard,
            flush_every=options.flush_every, full_every=options.full_every, writes=out is not None,
            is_dead=self.is_dead, agree=self.reactions.agree, opened_row=self._row_opened,
            closed_row=self._row_closed,
        )  # fmt: skip
        self._knn: float | None = None
        self._evaluated_at: dict[str, tuple[int, int]] = {}  # metric -> step, k
        self._writes_status = out is not None and run_id is None
        self._status_at = -math.inf
        try:
            if self._writes_status:
                write_settings(self.rundir, settings, goes_on=opened.step > 0)
                self._note_groups(instruments.layers)
            self.attachment.attach(self.rows)
            if opened.step > 0 and out is not None:
                self.reactions.recall()
        except BaseException:
            self.attachment.remove()
            if out is not None:
                out.close()
            raise
        self._write_status(End("running"))
        for note in instruments.notes:
            self.guard.noticed(note, note)
        self.closed = False
        PROCESS_END.open()
        self._at_exit = partial(_close_at_exit, weakref.ref(self))
        atexit.register(self._at_exit)
        for reason in instruments.members.left_out():
            self.guard.noticed(reason, reason)
        if before and settings is not None and opened.step > 0:
            for reason in changes(before, settings):
                self.guard.noticed(reason, reason)

    @property
    def step(self) -> int:
        """Updates made so far, which is the number of the next step."""
        return self.rows.step

    def is_dead(self) -> bool:
        """Return whether it is closed, or a copy in a forked process."""
        return self.closed or os.getpid() != self._pid

    def writes(self) -> bool:
        """Return whether this process writes rows."""
        return not self.is_dead() and self.out is not None

    def on(self, kind: str, action: Action, suspected: bool) -> None:
        """Ask for an action (`Reactions.on`), and say what will not be seen.

        Raises ValueError also as `check_needs` does.
        """
        check_needs(kind, self._measured)
        self.reactions.on(kind, action, suspected=suspected)
        note = unseen(kind, self._measured, self.rows.scalars.logged, self._full_every)
        if note and self.writes():  # only the writing process hears what is logged
            self.guard.noticed(f"on {kind}", note)

    def add_eval(self, one: Evaluation) -> None:
        """Write an evaluation, and react to the dips whose state it changes."""
        if not self.writes() or self.out is None:
            return
        if one.step == self._first_step and (one.metric, one.k) in self._kept_evals:
            return  # made before the checkpoint, and made again of the same weights
        if self._evaluated_at.get(one.metric) == (one.step, one.k):
            self.guard.noticed(
                f"log_eval {one.metric}", f"log_eval: {one.metric} {EVALUATED_TWICE}"
            )
            return
        self._evaluated_at[one.metric] = one.step, one.k
        self._knn = one.value if one.metric == METRIC else self._knn
        self.out.add(one.add_to)
        if one.correct is None:
            if "dip" in self.reactions.kinds:
                self.guard.noticed(
                    f"on dip {one.metric}",
                    f"{one.metric} was logged without the answer to each sample, which on('dip') "
                    "needs: use log_eval. `stabkit analyze` finds dips without them too",
                )
            return
        with self.guard("reactions"):
            found = self.reactions.evaluated(one.step, one.metric, one.correct, one.chance)
            self.reactions.react(found)

    def _evaluate(self, at_end: bool = False) -> None:
        """Evaluate by kNN if that is due; its seconds are a scalar of the row that is open."""
        if at_end:
            self.rows.close_row()
        no_step = at_end and self.step == self._first_step
        if self.knn is None or no_step or not self.knn.is_due(self.step, at_end):
            return
        found = self.knn.evaluate(self.step, self.guard)
        if found is None:
            return
        if not at_end:
            self.rows.scalars.add(self.step, "knn_seconds", found.seconds)
        knn, chance = self.knn, 1 / self.knn.num_classes
        self.add_eval(of_bits(self.step, METRIC, found.correct, chance, knn.k, knn.temperature))

    def gradients_ready(self, optimizer: Optimizer | None) -> None:
        """Record the gradients now, of one optimizer or of all."""
        told = self.attachment.gradients_ready(optimizer)
        if not told:
            kind = type(optimizer).__name__
            self.guard.noticed(
                f"before_clipping {kind}",
                f"before_clipping was told of {kind}, which is no optimizer of the Monitor: "
                "nothing was recorded; pass one of its own",
            )

    def flush(self) -> None:
        """Write everything of the steps so far, and wait for the disk."""
        if self.is_dead():
            return
        self.rows.flush()
        if self.out is not None:
            self.out.wait()

    def close(self, end: End = End("done")) -> None:  # noqa: B008 (it cannot be changed)
        """Flush, and let go of the optimizers and the folder; `end` is how the run ended."""
        if self.is_dead():
            return
        self._let_go()
        # After an error the other processes of a sharded model may be anywhere, so the rows that
        # all of them would have to add up are given up.
        self.rows.report_no_step()
        alone = self.rows.measure.blocks.sharded and end.reason is not None
        try:
            if alone:
                with self.guard("flush"):
                    self.rows.flusher.write_pending()
            else:
                if end.reason is None:
                    self._evaluate(at_end=True)
                self.flush()
            if end.state == "done":  # a run that stopped or failed may be resumed
                with self.guard("reactions"):
                    self.reactions.finish()
            self._write_status(end)
        finally:
            self.closed = True
            try:
                self.reactions.close()
            finally:
                if self.out is not None:
                    self.out.close()

    def _let_go(self) -> None:
        self.attachment.remove()
        atexit.unregister(self._at_exit)
        PROCESS_END.close()

    def _note_groups(self, layers: Mapping[str, Sequence[Tensor]]) -> None:
        """Note the parameter groups, if there are several: what a layer is trained with."""
        with self.guard("param_groups"):
            groups = param_groups(self.attachment.optimizers, layers)
            if groups and self.out is not None:
                self.out.event("param_groups", self.step, groups=groups)

    def _signal_failed(self, name: str, error: Exception) -> None:
        self.guard.signal_failed(name, error)

    def _row_opened(self) -> None:
        PROCESS_END.goes_on()
        self.reactions.row_opened(self.step)
        self._evaluate()

    def _row_closed(self) -> None:
        if time.monotonic() - self._status_at > STATUS_EVERY_S:
            self._write_status(End("running"))

    def _write_status(self, end: End) -> None:
        """Write what `stabkit status` shows."""
        self._status_at = time.monotonic()
        if self._writes_status and self.out is not None:
            found = dict(self.reactions.counts)
            self.out.status(
                Status(end.state, self.step, knn=self._knn, reason=end.reason, events=found)
            )

    # Not weakref.finalize: its registry would keep alive what must be flushed. What must be flushed
    # holds the optimizers (a reaction saves their state), whose hooks hold this object, as they
    # must. So nothing would ever be freed before the interpreter ends.
    def __del__(self) -> None:
        """Write the rows when nobody closed the Monitor and its optimizers are gone.

        Waits for nothing, because it may run anywhere. The rows of a sharded model are lost: all
        processes would have to add them up.
        """
        with suppress(Exception):
            if not self.is_dead():
                end = PROCESS_END.so_far() or End("done", "its Monitor was not closed")
                self._let_go()
                if self.out is not None and not self.rows.measure.blocks.sharded:
                    self.rows.flush()
                    self._write_status(end)
                self.closed = True
                if self.out is not None:
                    self.out.leave()


def _close_at_exit(recording: "weakref.ref[Recording]") -> None:
    """Close what is still open when the interpreter ends."""
    found = recording()
    if found is not None:
        found.close(PROCESS_END.so_far() or End("done", NOT_CLOSED))
