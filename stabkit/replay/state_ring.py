"""Kept states for a loop of one's own: keep, pin, and go back."""

import io
import logging
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stabkit.monitor.ranks import rank
from stabkit.monitor.torch_files import read_tensors, write_tensors
from stabkit.rundir import Ring, kept_states, own_folder

log = logging.getLogger("stabkit")


class StateRing:
    """Keeps whole states of a training in `folder`/states: the nearer, the denser.

        ring = stabkit.StateRing(model, optimizer, "runs/mine", every=100)
        monitor.on("dip", lambda event: ring.pin(event.step))
        for step in range(steps):
            ring.keep(step)
            train_step(batch_of(step))
        step = ring.restore(1200)       # and on from there, with batch_of(step)

    A state holds the model, the optimizers, `also`, and the random generators of Python, numpy and
    torch. It does not hold the place in the data: `restore` returns the step, and the loop finds
    its data by it.

    Arguments:
    - `folder`: the run's folder, that of the Monitor for example.
    - `every`: steps between two states where they are densest.
    - `most`: how many states are kept; as many again may be pinned.
    - `also`: what else must go back, by name: anything with `state_dict` and `load_state_dict`,
      as in `scheduler=scheduler`. Raises TypeError for anything else, or where its state is not
      plain.

    States are copied in memory and written by a thread, so a slow disk never holds up the training.
    What cannot be written is told by the logger "stabkit". With several processes the first writes;
    each must hold the whole model.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        folder: str | Path,
        *,
        every: int = 100,
        most: int = 12,
        **also: Any,
    ) -> None:
        if not isinstance(every, int) or every < 1:
            raise ValueError(f"StateRing: every must be 1 step or more, got {every}")
        if most < 2:
            raise ValueError(f"StateRing: most must be 2 states or more, got {most}")
        for name, part in also.items():
            _check_plain(name, part)
        self.model, self.also = model, also
        self.optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
        self.every = every
        path = Path(folder).absolute()  # the training may change its working directory
        path.mkdir(parents=True, exist_ok=True)  # once: a folder that is deleted stays so
        self._ring = Ring(path / "states", most, every)
        self._thread = ThreadPoolExecutor(1, "stabkit-states")
        self._last: Future[None] | None = None
        self._still = self._crowded = False

    @property
    def folder(self) -> Path:
        """The folder of the states."""
        return self._ring.folder

    @contextmanager
    def still(self) -> Iterator[None]:
        """Keep and pin nothing meanwhile: a branch must not change the states of its run."""
        self.wait()
        before, self._still = self._still, True
        try:
            yield
        finally:
            self._still = before

    @property
    def steps(self) -> list[int]:
        """Return the steps that `restore` can go back to."""
        self.wait()
        return [state.step for state in kept_states(self._ring.folder)]

    def keep(self, step: int) -> None:
        """Keep the state before the update `step`, if `step` is a multiple of `every`.

        Call it at every step. A state is left out while the one before it is still being written.
        """
        if self._still or step % self.every or rank() != 0:
            return
        if self._last is not None and not self._last.done():
            log.warning("stabkit: the disk is slow: the state of step %d is not kept", step)
            return
        content = {"step": step, **_copied(self._state()), "random": _random_state()}
        copied = None
        if _uses_cuda():
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
        self._last = self._thread.submit(self._write, step, content, copied)

    def pin(self, step: int) -> None:
        """Never throw away the last two states at or before `step`: an event began there."""
        if rank() == 0 and not self._still:
            self._thread.submit(self._pin, step)

    def restore(self, step: int) -> int:
        """Put everything back as it was in the newest state at or before `step`; return its step.

        Raises ValueError when there is none, or when it is damaged or does not fit.
        """
        self.wait()
        states = kept_states(self._ring.folder)
        before = [state for state in states if state.step <= step]
        if not before:
            there = ", ".join(str(state.step) for state in states) or "none at all"
            raise ValueError(
                f"{self._ring.folder}: no state at or before {step}; there are {there}"
            )
        content = read_tensors(before[-1].path)
        try:
            self.model.load_state_dict(content["model"])
            for optimizer, state in zip(self.optimizers, content["optimizers"], strict=True):
                optimizer.load_state_dict(state)
            for name, part in self.also.items():
                part.load_state_dict(content["also"][name])
            _set_random_state(content["random"])
        except (KeyError, RuntimeError, TypeError) as error:
            raise ValueError(f"{before[-1].path}: does not fit this training: {error}") from error
        return before[-1].step

    def wait(self) -> None:
        """Wait until everything so far is written or was found not to be writable."""
        self._thread.submit(lambda: None).result()

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "also": {name: part.state_dict() for name, part in self.also.items()},
        }

    def _write(self, step: int, content: dict[str, Any], copied: "torch.cuda.Event | None") -> None:
        try:
            if copied is not None:
                copied.synchronize()
            own_folder(self._ring.folder)
            file = self._ring.place(step)
            write_tensors(content, file)
            self._ring.thin(step)
            if self._ring.leave_room(file) and not self._crowded:
                log.warning("stabkit: the disk is nearly full: fewer states are kept")
                self._crowded = True
        except Exception as error:  # any kind: the training must go on
            log.warning("stabkit: the state of step %d is not kept: %s", step, error)

    def _pin(self, step: int) -> None:
        try:
            self._ring.pin_before(step)
        except (OSError, ValueError) as error:
            log.warning("stabkit: nothing is pinned before step %d: %s", step, error)


def _copied(tree: Any) -> Any:
    """Return the tree with copies of its tensors, which training does not change."""
    if isinstance(tree, Tensor):
        return tree.detach().clone()
    if isinstance(tree, dict):
        return {key: _copied(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)([_copied(value) for value in tree])
    return tree


def _check_plain(name: str, part: Any) -> None:
    if not (hasattr(part, "state_dict") and hasattr(part, "load_state_dict")):
        raise TypeError(f"StateRing: {name} has no state_dict and load_state_dict")
    try:
        file = io.BytesIO()
        torch.save(part.state_dict(), file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception:
        raise TypeError(
            f"StateRing: the state_dict of {name} holds more than tensors and plain data, and "
            "could not be read again without running code"
        ) from None


def _uses_cuda() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _random_state() -> dict[str, Any]:
    kind, keys, place, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys, np.int64)), place, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if _uses_cuda() else [],
    }


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
