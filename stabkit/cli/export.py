"""`stabkit export`."""

import argparse
import sys
from typing import Any

from stabkit.cli.names import run_of
from stabkit.cli.request import RequestError, open_trained
from stabkit.printing import counted
from stabkit.rundir import ForeignFolderError


def act(arguments: argparse.Namespace) -> int:
    """Export the weights of a backbone, or what a run recorded."""
    if (arguments.out is None) == (arguments.tensorboard is None):
        raise RequestError(
            "export needs one of: -o FILE, for the weights of the backbone; --tensorboard FOLDER, "
            "for what was recorded"
        )
    if arguments.tensorboard is not None:
        return _export_events(arguments)
    encoder: Any = arguments.encoder or "online"
    rundir = open_trained(run_of(arguments.run))
    from stabkit.train.weights import export

    try:
        count = export(rundir, arguments.out, encoder)
    except ForeignFolderError:
        raise
    except (ValueError, OSError) as error:
        print(f"stabkit: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.out}: {count} tensors of the {encoder} backbone")
    return 0


def _export_events(arguments: argparse.Namespace) -> int:
    from stabkit.convert.export import export_events
    from stabkit.convert.series import ConvertError
    from stabkit.store.reader import open_run

    if arguments.encoder is not None:
        raise RequestError("--encoder goes with -o FILE: events hold no weights")
    try:
        count = export_events(open_run(run_of(arguments.run)), arguments.tensorboard)
    except ConvertError as error:
        raise RequestError(str(error)) from None
    folder = arguments.tensorboard
    tags = counted(count, "tag")
    print(f"{folder}: {tags}, float32; look at them by `tensorboard --logdir {folder}`")
    return 0
