"""`stabkit train`."""

import argparse
import sys
from pathlib import Path

from stabkit.cli.request import speaks
from stabkit.config import ConfigError, load_config, missing_data, run_id
from stabkit.rundir import LinkedError, RunDir


def act(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.overrides)
    if problem := missing_data(config):
        raise ConfigError(arguments.config, [problem])
    name = f"{Path(arguments.config).stem}-{run_id(config)}"
    rundir = RunDir(arguments.run_dir or Path("runs") / "train" / name)
    if speaks():
        print(f"{rundir.path}: training {config.train.steps} steps", flush=True)
    from stabkit.train.loop import train  # torch takes seconds to import: only once it is needed
    from stabkit.train.together import PeerError

    try:
        status = train(config, rundir)
    except LinkedError:
        raise
    except (ValueError, OSError) as error:
        print(f"stabkit: {rundir.path}: {error}", file=sys.stderr)
        return 1
    except PeerError:  # said by the process that it happened to
        return 1
    if status.state == "preempted":
        if speaks():
            where = f"{status.reason} at step {status.step} of {status.steps}"
            print(f"{rundir.path}: {where}; the same command goes on from there", file=sys.stderr)
        return 1
    if not speaks():
        return 0
    knn = f", held-out kNN {status.knn:.3f}" if status.knn is not None else ""
    reason = f" ({status.reason})" if status.reason else ""
    print(f"{rundir.path}: done at step {status.step} of {status.steps}{knn}{reason}")
    return 0
