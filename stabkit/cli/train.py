"""`stabkit train`."""

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path

from stabkit.cli.names import is_sweep
from stabkit.cli.next_step import say_next
from stabkit.cli.request import RequestError, is_speaker
from stabkit.config import (
    ConfigError,
    RunConfig,
    differences,
    load_config,
    missing_data,
    preset_names,
    run_id,
)
from stabkit.garbage import no_collections
from stabkit.printing import counted
from stabkit.rundir import LinkedError, RunDir, claim_for_run
from stabkit.sweep.display import shown_meanwhile
from stabkit.sweep.status import row_reader


def act(arguments: argparse.Namespace) -> int:
    """Train one run."""
    if arguments.config not in preset_names() and is_sweep(arguments.config):
        raise RequestError(
            f"{arguments.config}: is a sweep; `stabkit sweep {arguments.config}` trains its runs"
        )
    config = load_config(arguments.config, arguments.overrides)
    if problem := missing_data(config):
        raise ConfigError(arguments.config, [problem])
    name = f"{Path(arguments.config).stem}-{run_id(config)}"
    rundir = RunDir(arguments.run_dir or Path("runs") / "train" / name)
    claim_for_run(rundir, lambda file: differences(file, config))
    if is_speaker():
        print(f"{rundir.path}: training {counted(config.end, 'step')}", flush=True)
    with shown_meanwhile(row_reader([rundir])) if is_speaker() else nullcontext():
        code, message = _train(config, rundir, arguments.allow_inexact)
    if message:
        print(message, file=sys.stderr if code else sys.stdout, flush=True)
    if not code:
        say_next("stabkit", "analyze", str(rundir.path))
    return code


def _train(config: RunConfig, rundir: RunDir, allow_inexact: bool) -> tuple[int, str]:
    """Train, and return the exit code and what to print; nothing where another process prints."""
    with no_collections():  # not before: importing torch takes seconds
        from stabkit.train.data.errors import DecoderError
        from stabkit.train.loop import train
        from stabkit.train.parallel.agree import PeerError, PeerRefusedError
        from stabkit.train.refusals import NOT_STARTED, InexactResumeError

    try:
        status = train(config, rundir, allow_inexact=allow_inexact)
    except InexactResumeError as error:
        raise RequestError(f"{rundir.path}: {error}") from None
    except (*NOT_STARTED, LinkedError):  # `dispatch` prints these, for all verbs alike
        raise
    except (ValueError, OSError, DecoderError) as error:
        return 1, f"stabkit: {rundir.path}: {error}"
    except PeerRefusedError:
        return 2, ""
    except PeerError:  # the process that failed has said why
        return 1, ""
    at = f"at step {status.step} of {status.steps}"
    if status.state == "preempted":
        message = f"{rundir.path}: {status.reason} {at}; the same command goes on from there"
        return 1, message if is_speaker() else ""
    knn = f", held-out kNN {100 * status.knn:.1f} %" if status.knn is not None else ""
    reason = f" ({status.reason})" if status.reason else ""
    return 0, f"{rundir.path}: done {at}{knn}{reason}" if is_speaker() else ""
