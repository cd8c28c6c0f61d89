"""Carry out `stabkit replay`."""

import argparse
import sys
from pathlib import Path

from stabkit.cli.names import run_of
from stabkit.cli.next_step import say_next
from stabkit.cli.request import is_speaker, open_own
from stabkit.printing import counted


def act(arguments: argparse.Namespace) -> int:
    """Replay steps of a run into a folder of their own, and print what they show."""
    run = open_own(run_of(arguments.run)).path
    what = arguments.at.replace(":", "-")
    out = arguments.out or Path("replays") / f"{run.resolve().name}-at-{what}"
    # Here, since torch takes seconds to import.
    from stabkit.replay.answer import answers, look
    from stabkit.replay.figure import draw_replay
    from stabkit.replay.proof import ReplayDiffersError
    from stabkit.replay.replay import replay
    from stabkit.train.parallel.agree import PeerError

    def say(line: str) -> None:
        print(f"{run}: {line}", flush=True)

    try:
        done = replay(run, arguments.at, out, arguments.until, say)
    except ReplayDiffersError as error:
        if is_speaker():
            print(f"stabkit: {run}: the replay {error}", file=sys.stderr)
        return 1
    except PeerError:  # the process that failed has said why
        return 1
    if done is None:
        return 0
    states = ", ".join(map(str, done.states))
    whole = f"the whole state before step {states}" if states else "no kept state lies between"
    say(
        f"equal to the record bit for bit: rows of {counted(done.rows, 'step')}, "
        f"{counted(done.evaluations, 'evaluation')}; {whole}"
    )
    if (missing := done.plan.end - done.plan.start - done.rows) > 0:
        say(f"the record holds no rows of {counted(missing, 'other step')}")
    if done.changed:
        say(f"it is equal although this has changed since: {done.changed}")
    found = look(out, done.plan)
    print("\n".join(answers(found, done.plan)))
    draw_replay(found, done.plan, out / "replay.png")
    print(f"{out}: replay.png, tensors.parquet, samples.parquet and the tables of a run")
    say_next("stabkit", "branch", str(run), "--at", arguments.at)
    return 0
