"""Time one training by stages, from `import torch` to the end of its first step.

startup.py runs it in a new process:
`python -m benchmarks.speed.first_step RUN_DIR [key=value ...]` prints the seconds of each stage as
JSON, and ends there.
"""

import time

before_torch = time.perf_counter()
import torch  # noqa: E402

began = time.perf_counter()
import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from stabkit.config import load_config  # noqa: E402
from stabkit.rundir import RunDir  # noqa: E402
from stabkit.train import loop  # noqa: E402

imported = time.perf_counter()

STAGES = {
    "load_data": "data set",
    "HeldoutKnn": "held-out images and their views",
    "build_state": "model and optimizer",
    "_begin_record": "Monitor and run folder",
    "evaluate_heldout": "held-out kNN at step 0",
    "make_batch": "views of the first batch",
    "train_step": "first step",
}
# slow imports; those within a stage count there
HEAVY = ("timm", "torchvision", "torch._dynamo", "scipy", "pandas", "matplotlib")
seconds = {"import torch": began - before_torch, "import stabkit.train.loop": imported - began}


def timed(function: Callable[..., Any], stage: str) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = function(*args, **kwargs)
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        seconds[stage] = time.perf_counter() - start
        if stage == "first step":
            end()
        return result

    return run


def end() -> None:
    total = time.perf_counter() - began
    loaded = [name for name in HEAVY if name in sys.modules]
    print(json.dumps({"total": total, "seconds": seconds, "loaded": loaded}), flush=True)
    os._exit(0)  # what follows does not matter, and the folder is temporary


def main() -> None:
    for name, stage in STAGES.items():
        setattr(loop, name, timed(getattr(loop, name), stage))
    loop.train(load_config("tiny", sys.argv[2:]), RunDir(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
