"""How many processor cores this process may use."""

import os


def usable_cores() -> int:
    """Return the number of cores that the scheduler lets this process run on.

    A container or a SLURM job may allow fewer cores than the machine has.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    # macOS has no affinity
    return os.cpu_count() or 1
