"""`stabkit note`: write a note on a step of a run, which may be training meanwhile."""

import argparse

from stabkit.cli.names import run_of
from stabkit.cli.next_step import say_next
from stabkit.cli.request import RequestError
from stabkit.rundir import RunDir, find_runs
from stabkit.rundir.notes import LONGEST

ENDED = ("done", "failed", "preempted")  # states in which the last step is known


def act(arguments: argparse.Namespace) -> int:
    """Append the note; nothing that a training writes is changed."""
    rundir = RunDir(run_of(arguments.run))
    if not rundir.path.is_dir() or find_runs(rundir.path) != [rundir.path]:
        raise RequestError(f"{rundir.path}: not a run folder (no config.yaml, no tables in it)")
    text = arguments.text.strip()
    if not text:
        raise RequestError("a note needs a text, e.g. stabkit note RUN 120 'new data from here'")
    if len(text) > LONGEST:
        raise RequestError(f"the text has {len(text)} characters; a note has at most {LONGEST}")
    step, last = arguments.step, rundir.last_status()
    end = 0 if last is None else last.steps or (last.step if last.state in ENDED else 0)
    if step < 0 or (end and step > end):
        ends = f"0 to {end}" if end else "0 or more"
        raise RequestError(f"step {step}: {rundir.path} has the steps {ends}")
    rundir.append_note(step, text)
    print(f"{rundir.path}: noted at step {step}")
    say_next("stabkit", "analyze", str(rundir.path))
    return 0
