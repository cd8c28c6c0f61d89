"""`stabkit train`."""

import argparse
import sys
from pathlib import Path

from stabkit.cli.request import RequestError, is_speaker
from stabkit.config import ConfigError, differences, load_config, missing_data, run_id
from stabkit.rundir import LinkedError, RunDir, claim_for_run


def act(arguments: argparse.Namespace) -> int:
    """Train one run."""
    config = load_config(arguments.config, arguments.overrides)
    if problem := missing_data(config):
        raise ConfigError(arguments.config, [problem])
    name = f"{Path(arguments.config).stem}-{run_id(config)}"
    rundir = RunDir(arguments.run_dir or Path("runs") / "train" / name)
    claim_for_run(rundir, lambda file: differences(file, config))
    if is_speaker():
        print(f"{rundir.path}: training {config.train.steps} steps", flush=True)
    from stabkit.train.loop import train  # not before: importing torch takes seconds
    from stabkit.train.parallel.agree import PeerError, PeerRefusedError
    from stabkit.train.refusals import REFUSALS, InexactResumeError

    try:
        status = train(config, rundir, allow_inexact=arguments.allow_inexact)
    except InexactResumeError as error:
        raise RequestError(f"{rundir.path}: {error}") from None
    except (*REFUSALS, LinkedError):  # `dispatch` prints these, for all verbs alike
        raise
    except (ValueError, OSError) as error:
        print(f"stabkit: {rundir.path}: {error}", file=sys.stderr)
        return 1
    except PeerRefusedError:
        return 2
    except PeerError:  # the process that failed has said why
        return 1
    if status.state == "preempted":
        if is_speaker():
            where = f"{status.reason} at step {status.step} of {status.steps}"
            print(f"{rundir.path}: {where}; the same command goes on from there", file=sys.stderr)
        return 1
    if not is_speaker():
        return 0
    knn = f", held-out kNN {status.knn:.3f}" if status.knn is not None else ""
    reason = f" ({status.reason})" if status.reason else ""
    print(f"{rundir.path}: done at step {status.step} of {status.steps}{knn}{reason}")
    return 0
