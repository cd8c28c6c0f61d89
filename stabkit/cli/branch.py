"""Carry out `stabkit branch`."""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from stabkit.cli.names import run_of
from stabkit.cli.next_step import say_next
from stabkit.cli.request import RequestError, is_speaker, open_own
from stabkit.config import ConfigError, missing_data, parse_overrides
from stabkit.printing import counted
from stabkit.rundir import RunDir
from stabkit.sweep.folders import refuse_foreign
from stabkit.sweep.grid import SLURM, PlannedRun, Sweep
from stabkit.sweep.launch import launch

if TYPE_CHECKING:
    from stabkit.branch.begin import Beginnings
    from stabkit.branch.study import Branch, BranchStudy


def act(arguments: argparse.Namespace) -> int:
    """Run branches of a run around an event, with controls, into a study folder of their own."""
    run = run_of(arguments.run)
    words = [*(arguments.change or []), *arguments.overrides]
    slurm = parse_overrides([w.removeprefix(SLURM) for w in words if w.startswith(SLURM)])
    if slurm and arguments.cluster != "slurm":
        raise RequestError("slurm.* settings need --cluster slurm")
    if loose := [word for word in arguments.overrides if not word.startswith(SLURM)]:
        raise RequestError(f"{loose[0]}: write --with before the changes")
    open_own(run, "; for a loop of your own there is stabkit.branch_loop")
    # Here, since torch takes seconds to import.
    import torch

    from stabkit.replay.proof import ReplayDiffersError
    from stabkit.train.parallel.agree import PeerError, PeerRefusedError, fail_together
    from stabkit.train.parallel.reduce import process_group

    try:
        with process_group(torch.cuda.is_available()), fail_together():
            return _carry_out(run, words, slurm, arguments)
    except ReplayDiffersError as error:
        print(f"stabkit: {run}: {error}", file=sys.stderr)
        return 1
    except PeerRefusedError:
        return 2
    except PeerError:  # the process that failed has said why
        return 1


def _carry_out(
    run: Path, words: Sequence[str], slurm: dict[str, object], arguments: argparse.Namespace
) -> int:
    """Plan the study, make what branches begin with, and run them; all processes do so together."""
    from stabkit.branch.study import FULL, QUICK, plan_study
    from stabkit.branch.study_file import read_kick, write_plan
    from stabkit.train.parallel.agree import run_by_first, run_together

    changes = [word for word in words if not word.startswith(SLURM)]
    size = FULL if arguments.full else QUICK
    study = run_by_first(
        lambda: plan_study(run, arguments.at, size, changes, arguments.begin or [], arguments.until)
    )
    what = arguments.at.replace(":", "-")
    folder = arguments.out or Path("branches") / f"{run.resolve().name}-at-{what}"
    there, kick = run_by_first(lambda: read_kick(study, folder))
    beginnings = run_together(lambda: _beginnings(study, folder))
    _print_plan(study, folder)
    if arguments.dry_run:
        say_next("stabkit", *(word for word in arguments.words if word != "--dry-run"))
        return 0
    with _held_by_first(folder):
        if not there:
            beginnings.make_states(_say)
            if any(b.family == "kick" and b.kind == "sham" for b in study.branches):
                kick = beginnings.measure_kick()
            run_by_first(lambda: write_plan(study, folder, kick))
    return _run(study, beginnings, folder, kick, arguments, slurm)


def _beginnings(study: "BranchStudy", folder: Path) -> "Beginnings":
    from stabkit.branch.begin import Beginnings

    if problem := missing_data(study.config):
        raise ConfigError(str(study.parent), [problem])
    return Beginnings(study, folder)


@contextmanager
def _held_by_first(folder: Path) -> Iterator[None]:
    """Hold the folder of the study, in the name of all processes."""
    from stabkit.train.parallel.agree import run_by_first

    with ExitStack() as held:

        def hold() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(RunDir(folder).lock())

        run_by_first(hold)
        yield


def _run(
    study: "BranchStudy",
    beginnings: "Beginnings",
    folder: Path,
    kick: float | None,
    arguments: argparse.Namespace,
    slurm: dict[str, object],
) -> int:
    """Run the controls, prove them, and only then run the other branches."""
    from stabkit.train.parallel.agree import run_by_first

    controls = [branch for branch in study.branches if branch.kind == "control"]
    for branches in (controls, study.branches):
        sweep = _sweep(study, branches, kick, folder, arguments.allow_inexact)
        with _held_by_first(folder):
            done = run_by_first(partial(_make_folders, beginnings, branches, kick, sweep))
        if not done:
            code = _launch(sweep, folder, arguments, slurm)
            if code or arguments.cluster == "slurm":
                return code
        if branches is controls:
            run_by_first(partial(_prove, study, controls, sweep, folder))
    return run_by_first(partial(_verdict, folder))


def _make_folders(
    beginnings: "Beginnings", branches: "Sequence[Branch]", kick: float | None, sweep: Sweep
) -> bool:
    """Make the folders of the branches; return whether all branches are done already."""
    for branch in branches:
        beginnings.make_folder(branch, kick)
    refuse_foreign(sweep, beginnings.folder)
    return all(
        RunDir(beginnings.folder / planned.folder).standing() == "done" for planned in sweep.runs
    )


def _prove(study: "BranchStudy", controls: "Sequence[Branch]", sweep: Sweep, folder: Path) -> None:
    """Prove the controls. Raises ReplayDiffersError that names the control that differs."""
    from stabkit.branch.control import prove_control
    from stabkit.replay.proof import ReplayDiffersError

    for branch, planned in zip(controls, sweep.runs, strict=True):
        try:
            found = prove_control(study, branch.begin, folder / planned.folder)
        except ReplayDiffersError as error:
            raise ReplayDiffersError(f"{branch.name} {error}") from None
        _say(
            f"{branch.name} is the run bit for bit: {found.rows} steps, "
            f"{found.evaluations} evaluations"
        )


def _sweep(
    study: "BranchStudy",
    branches: "Sequence[Branch]",
    kick: float | None,
    folder: Path,
    allow_inexact: bool,
) -> Sweep:
    """Return branches as the runs of a sweep, for the launchers."""
    from stabkit.branch.study import config_of_branch, folder_of

    runs = []
    for branch in branches:
        config = config_of_branch(study, branch, kick)
        name = folder_of(branch, config)
        if allow_inexact:
            runtime = config.runtime.model_copy(update={"allow_inexact": True})
            config = config.model_copy(update={"runtime": runtime})
        runs.append(PlannedRun({"branch.change": branch.change or branch.kind}, config, name))
    return Sweep(folder.name, None, tuple(runs))


def _launch(
    sweep: Sweep, folder: Path, arguments: argparse.Namespace, slurm: dict[str, object]
) -> int:
    from stabkit.monitor.ranks import world_size
    from stabkit.train.parallel.agree import run_by_first

    retry = arguments.retry == "failed"
    if arguments.cluster == "slurm":
        return run_by_first(partial(_submit, sweep, folder, slurm, retry))
    return _train_together(sweep, folder) if world_size() > 1 else launch(sweep, folder, retry)


def _submit(sweep: Sweep, folder: Path, slurm: dict[str, object], retry: bool) -> int:
    from stabkit.sweep.submit import submit

    code = submit(sweep, folder, slurm, retry, snapshot=False)
    if code == 0:
        print("when these are done, the same command goes on")
    return code


def _train_together(sweep: Sweep, folder: Path) -> int:
    """Train one branch after the other, each by all processes. Return the exit code."""
    from stabkit.train.loop import train

    for planned in sweep.runs:
        path = folder / planned.folder
        status = train(planned.config, RunDir(path))
        _say(f"{path.name}: {status.state} at step {status.step} of {status.steps}")
        if status.state == "preempted":
            _say("the same command goes on from there")
            return 1
    return 0


def _verdict(folder: Path) -> int:
    """Print what the branches show; write the tables and figures of the study."""
    from stabkit.branch.judge.attribution import judge_branches
    from stabkit.branch.judge.branch_figures import write_study
    from stabkit.branch.judge.branch_table import measured_table, read_plan

    plan = read_plan(folder)
    table = measured_table(plan)
    judged = judge_branches(table)
    print(judged.text())
    for file in write_study(plan, table, judged):
        _say(str(file))
    say_next("stabkit", "analyze", str(folder))
    return 0


def _print_plan(study: "BranchStudy", folder: Path) -> None:
    begins = ", ".join(map(str, study.begins))
    _say(
        f"{study.parent}: {study.event.words}; branches from step {begins} to {study.horizon}, in "
        f"{folder}"
    )
    kinds = Counter(branch.kind for branch in study.branches)
    steps = sum(study.horizon - branch.begin for branch in study.branches)
    words = ", ".join(counted(count, kind) for kind, count in kinds.items())
    _say(f"  {counted(len(study.branches), 'branch')}, {counted(steps, 'step')}: {words}")
    for kind in ("intervention", "sham"):
        rows = Counter((b.change, b.family) for b in study.branches if b.kind == kind)
        for (change, family), count in rows.items():
            _say(f"  {kind:<13}{count:>2} x {change}  ({family})")
    for name, why in study.left_out.items():
        _say(f"  left out: {name}, {why}")


def _say(line: str) -> None:
    if is_speaker():
        print(line, flush=True)
