"""Where branches begin: the parent's state at a step, and a branch's folder made from it."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from stabkit.branch.nudges import distance, kick, nudge
from stabkit.branch.optimizer_state import carried_over, forgotten, without_first_moments
from stabkit.branch.protocol import FIRST
from stabkit.branch.study import Branch, BranchStudy, config_of_branch, folder_of
from stabkit.config import ConfigError, RunConfig, run_id, save_config
from stabkit.monitor.layers import group_layers
from stabkit.monitor.ranks import rank
from stabkit.monitor.torch_files import write_tensors
from stabkit.printing import counted
from stabkit.replay.plan import attempts_of, states_before
from stabkit.rundir import LIFECYCLE, TABLES, RunDir, atomic_write, hidden_folder, make_inside
from stabkit.store.reader import StoredRun
from stabkit.store.writer import copy_rows
from stabkit.train.checkpoint_file import read_checkpoint
from stabkit.train.data.batches import ReadAhead, make_batch
from stabkit.train.loop import TrainingParts, prepare, train_step
from stabkit.train.optim.freeze import freeze_parameters
from stabkit.train.parallel.agree import check_same_start, run_by_first, run_together
from stabkit.train.parallel.reduce import average_gradients
from stabkit.train.recording import Silent
from stabkit.train.request import check_request
from stabkit.train.state import TrainState, build_state, load_state, save_state

Say = Callable[[str], None]


class Beginnings:
    """Makes the parent's states and, from these, the folders of branches.

    Several processes each hold one, and make states and the kick together; the first alone makes
    folders.
    """

    def __init__(self, study: BranchStudy, folder: Path) -> None:
        """`folder`: that of the study. Raises ConfigError if the parent cannot be trained here."""
        self.study, self.folder = study, folder
        check_request(study.config, str(study.parent))
        self._parts: TrainingParts | None = None

    @property
    def parts(self) -> TrainingParts:
        """The data and the model of the parent, read when they are first needed."""
        if self._parts is None:
            self._parts = prepare(self.study.config, str(self.study.parent))
        return self._parts

    def state_file(self, step: int) -> Path:
        """Return the file of the parent's state before the update `step`."""
        return self.folder / "states" / f"step-{step:08}.pt"

    def make_states(self, say: Say) -> None:
        """Make the states that are missing, each from the newest one before it, or the seed."""
        config = self.study.config
        for step in run_by_first(self._missing):
            start, source, damaged = run_by_first(partial(self._source, step))
            for problem in damaged:
                say(f"passed over: {problem}")
            begin = "the start of the run" if source is None else f"the state {source.name}"
            say(f"the state before step {step}: {counted(step - start, 'step')} from {begin}")
            state = run_together(partial(self._at, config, source))
            self._go(config, state, start, step)
            run_by_first(partial(save_state, state, config, step, self.state_file(step)))

    def _missing(self) -> list[int]:
        return [step for step in sorted(self.study.begins) if not self.state_file(step).exists()]

    def _source(self, step: int) -> tuple[int, Path | None, list[str]]:
        """Return the step and file of the newest state before `step`, and what is damaged."""
        study = self.study
        parent = RunDir(study.parent)
        start, source, _, damaged = states_before(parent, study.config, step, step)
        for other in sorted(study.begins):
            if start < other < step:  # made just now
                start, source = other, self.state_file(other)
        return start, source, damaged

    def _at(self, config: RunConfig, file: Path | None) -> TrainState:
        """Return the state in `file`, or at the start of the run."""
        state = self._fresh(config)
        if file is not None:
            load_state(state, config, file)
        return state

    def measure_kick(self) -> float:
        """Return the largest distance by which an intervention moved the weights at first.

        It is the distance to the control after FIRST updates, of those that are compared with
        kicks. Raises ConfigError if it is 0 or not finite.
        """
        study = self.study
        ones = {
            b.change: b
            for b in study.branches
            if b.kind == "intervention" and b.family == "kick" and b.replicate == 0
        }
        begin = study.begins[0]
        control = self._weights_after(study.branches[0])
        moved = [
            distance(
                [one - other for one, other in zip(self._weights_after(b), control, strict=True)]
            )
            for b in ones.values()
        ]
        size = max(moved)
        if not 0 < size < np.inf:
            raise ConfigError(
                str(study.parent),
                [f"in the first {FIRST} updates from step {begin} the interventions move the "
                 f"weights by {size:g}, so that no kick of that size can be made; name another "
                 "step with --from"],
            )  # fmt: skip
        return float(f"{size:.6g}")

    def make_folder(self, branch: Branch, size: float | None) -> None:
        """Make the folder of a branch: its parent at the step where it begins, with the change."""
        config = config_of_branch(self.study, branch, size)
        path = self.folder / folder_of(branch, config)
        if path.exists():
            return
        parent, before, made = RunDir(self.study.parent), self.study.config, branch.begin
        with hidden_folder(path) as hidden:
            new = RunDir(hidden)
            for table in TABLES:
                copy_rows(parent.table(table), new.table(table), made, run_id(config))
            past = [e for e in parent.read_entries() if _is_past(e, made)]
            lines = "".join(json.dumps(entry) + "\n" for entry in past)
            atomic_write(new.events_file, lines.encode())
            attempts = [a for a in attempts_of(parent) if a.get("first_step", 0) <= made]
            new.write_meta({"attempts": attempts})
            make_inside(new.checkpoint_file.parent)
            write_tensors(self._content(branch, config), new.checkpoint_file)
            atomic_write(new.config_file, save_config(config).encode())
            new.append_entry("branch", parent=run_id(before), begin=made, change=branch.change)
            hidden.rename(path)

    def _fresh(self, config: RunConfig) -> TrainState:
        images = self.parts.images
        return build_state(config, len(images), self.parts.device, len(images.classes))

    def _content(self, branch: Branch, config: RunConfig) -> dict[str, Any]:
        """Return the state with which a branch begins, as a checkpoint of it."""
        content = read_checkpoint(self.state_file(branch.begin)) | {"run": run_id(config)}
        own, before = config.branch, self.study.config
        assert own is not None
        fresh = self._fresh(config)
        if config.optim != before.optim:
            content["optimizer"] = carried_over(
                content["optimizer"], fresh.optimizer.state_dict(), before.optim, config.optim
            )
        if config.optim.clip != before.optim.clip:
            content["stabilizer"] = self._clipping(fresh, branch.begin)
        names = {id(p): name for name, p in fresh.model.online.named_parameters()}
        trained = [names[id(p)] for group in fresh.optimizer.param_groups for p in group["params"]]
        if own.reset:
            layers, number = group_layers(trained)
            content["optimizer"] = forgotten(
                content["optimizer"], [layers[i] for i in number], own.reset
            )
        if own.reset_first:
            content["optimizer"] = without_first_moments(content["optimizer"])
        weights = {name: content["model"][f"online.{name}"] for name in trained}
        if own.kick is not None and own.nudge is not None:
            kick(weights, own.kick, own.nudge)
        elif own.nudge is not None:
            nudge(weights, own.nudge)
        return content

    def _clipping(self, state: TrainState, begin: int) -> dict[str, Any]:
        """Return what clipping would remember, had it looked on from the start of the run."""
        run = StoredRun(self.study.parent).as_of_now()
        if state.stabilizer.config.clip == "zclip":
            norms = run.scalar("grad_norm_total")
        else:
            signals = run.signals("grad_norm")
            of_patch = signals[signals["layer"] == "patch_embed"]
            norms = of_patch.set_index("step")["grad_norm"]
        state.stabilizer.look_on(norms[norms.index < begin].to_numpy(dtype=np.float64))
        return state.stabilizer.state_dict()

    def _weights_after(self, branch: Branch) -> list[Tensor]:
        """Return the weights after the first updates of a branch, without its nudge."""
        plain = branch._replace(settings={**branch.settings, "branch.nudge": None})
        config = config_of_branch(self.study, plain, None)

        def begun() -> TrainState:
            with hidden_folder(self.folder / f"measured-{rank()}") as hidden:
                file = hidden / "state.pt"
                write_tensors(self._content(plain, config), file)
                return self._at(config, file)

        state = run_together(begun)
        self._go(config, state, branch.begin, min(branch.begin + FIRST, config.end))
        return [p.detach().cpu() for p in state.model.online.parameters() if p.requires_grad]

    def _go(self, config: RunConfig, state: TrainState, first: int, end: int) -> None:
        """Make the updates `first` to `end` - 1, as the run does, and record nothing."""
        check_same_start(state.model, first)
        state = replace(state, network=average_gradients(state.model))
        state.stabilizer.attach(state.optimizer)
        if config.branch:
            freeze_parameters(state.model.online, state.optimizer, config.branch.freeze)
        device, classes = self.parts.device, self.parts.knn.num_classes
        with ReadAhead(config, self.parts.images) as ahead:
            for step in range(first, end):
                batch = make_batch(config, ahead.take(step), device)
                train_step(config, state, Silent(), batch, step, classes)


def _is_past(entry: dict[str, Any], begin: int) -> bool:
    """Return whether an entry of the parent's log was made before the branch begins."""
    step = entry.get("step")
    return step < begin if isinstance(step, int) else entry.get("kind") not in LIFECYCLE
