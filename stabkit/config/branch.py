"""Settings of a branch: a run that begins at a state of another run, with one change."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from stabkit.config.section import NonNegativeInt, Number, PositiveFloat, PositiveInt, Section


class BranchConfig(Section):
    """Where a branch begins and ends, and what is changed beside its settings.

    `stabkit branch` writes it. The branch begins with the state of the run `parent` before the
    update `step`, and stops before the update `end`; all schedules are still those of
    `train.steps`. Settings that differ from the parent's hold from `step` on. `change` says in
    words what is changed.

    At the start:

    - `nudge`: all weights move by one unit in the last place. The number seeds which way each goes.
    - `kick`: all weights are moved in a random direction, by this norm. `nudge` says which one.
    - `reset`: the optimizer forgets its moments and steps of these layers.
    - `reset_first`: the optimizer forgets the first moments, and only those, of all layers.

    From then on:

    - `freeze`: these parameters no longer change.
    - `lr_factor`: multiplies the learning rate for `lr_steps` updates.
    - `warmup_steps`: the learning rate rises from 0 again, over so many updates.
    - `skip`: a step and a number. This many batches are left out from that step on, and those
      after them move up.
    """

    parent: Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]
    step: NonNegativeInt
    end: PositiveInt
    change: str = ""
    nudge: NonNegativeInt | None = None
    kick: PositiveFloat | None = None
    reset: tuple[str, ...] = ()
    reset_first: bool = False
    freeze: tuple[str, ...] = ()
    lr_factor: PositiveFloat = 1.0
    lr_steps: NonNegativeInt = 0
    warmup_steps: NonNegativeInt = 0
    skip: tuple[Annotated[int, Number, Field(ge=0)], Annotated[int, Number, Field(gt=0)]] | None = (
        None
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.end <= self.step:
            raise ValueError(f"end {self.end} must be after step {self.step}")
        if self.kick is not None and self.nudge is None:
            raise ValueError(f"kick {self.kick} needs nudge, the number of its direction")
        if (self.lr_factor == 1) != (self.lr_steps == 0):
            raise ValueError(
                f"lr_factor {self.lr_factor} and lr_steps {self.lr_steps}: give both, or none"
            )
        if self.skip is not None and self.skip[0] < self.step:
            raise ValueError(f"skip {self.skip[0]} is before step {self.step}")
        return self


def lr_share(branch: BranchConfig | None, step: int) -> float:
    """Return the factor by which a branch multiplies the learning rate of the update `step`."""
    if branch is None:
        return 1.0
    done, share = step - branch.step, 1.0
    if done < branch.lr_steps:
        share *= branch.lr_factor
    if done < branch.warmup_steps:
        share *= done / branch.warmup_steps
    return share


def batch_of(branch: BranchConfig | None, step: int) -> int:
    """Return the number of the batch that the update `step` uses: its own, unless some are skipped.

    A batch is numbered by the update that uses it in a run which skips none.
    """
    if branch is None or branch.skip is None:
        return step
    first, count = branch.skip
    return step if step < first else step + count
