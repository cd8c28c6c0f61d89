"""Time what kept states add to a training: python -m benchmarks.speed.kept_states

The peer is a step of `tiny`, or the EVERY steps between two states. A kept state of a run is a hard
link to its checkpoint; `StateRing` copies the state in memory, and a thread writes it.
"""

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from benchmarks.lib.results import Row, Times, paired, parser, publish
from benchmarks.speed.step import Ours, config_for
from stabkit.replay.state_ring import StateRing
from stabkit.rundir import Ring, RunDir
from stabkit.train.state import save_state
from stabkit.train.weights_bits import weights_bits

EVERY = 20  # steps between two states
SHARE = 0.01  # of a step, at most


def main() -> None:
    given = parser(__doc__).parse_args()
    given.words, given.size = (), "cifar" if given.device.startswith("cuda") else "tiny"
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(given, Path(folder))
    publish(rows, given)


def measure(given: argparse.Namespace, folder: Path) -> list[Row]:
    ours = Ours(config_for(given), folder / "run")
    state, rundir = ours.state, RunDir(folder / "run")
    ring = Ring(rundir.states_folder, 12, EVERY)
    own = StateRing(state.model, state.optimizer, folder / "own", every=EVERY)
    step = 0

    def save() -> None:
        save_state(state, ours.config, step, rundir.checkpoint_file)

    def keep() -> None:
        nonlocal step
        step += EVERY
        ring.link(rundir.checkpoint_file, step)
        ring.leave_room(rundir.checkpoint_file)

    def bits() -> None:
        weights_bits(state.model.online.parameters()).item()

    pairs = 6 if given.quick else 14
    save()
    between = f"{EVERY} steps"
    bits_times = paired(bits, ours, pairs, calls=2)
    rows = [
        _of_steps(paired(keep, ours, pairs)).row("keep a checkpoint", between, "at most", SHARE),
        _of_steps(own_loop(own, ours, pairs)).row("StateRing.keep", between, "at most", SHARE),
        _of_steps(paired(save, ours, pairs)).row("the checkpoint itself", between, "at most"),
        bits_times.row("sum of all bits of the weights", "a step", "at most"),
    ]
    ours.monitor.close()
    return rows


def own_loop(ring: StateRing, step: Ours, pairs: int) -> Times:
    """Time `keep` and a step in turns; a state is left out while the last one is being written."""
    times: tuple[list[float], list[float]] = ([], [])
    for pair in range(pairs + 1):
        for side, act in ((0, partial(ring.keep, pair * EVERY)), (1, step)):
            ring.wait()
            began = time.perf_counter()
            act()
            times[side].append(time.perf_counter() - began)
    return Times(times[0][1:], times[1][1:])


def _of_steps(times: Times) -> Times:
    return Times(times.ours, [EVERY * seconds for seconds in times.peer])


if __name__ == "__main__":
    main()
