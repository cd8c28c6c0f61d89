"""Run folders: paths, atomic files, status, log, lock, search."""

from stabkit.rundir.claim import (
    ForeignFolderError,
    claim_for_file,
    claim_for_import,
    claim_for_monitor,
    claim_for_run,
    claim_for_sweep,
)
from stabkit.rundir.files import atomic_write, commit, same_folder, utc_now
from stabkit.rundir.find import TABLES, LeftOutWarning, find_runs, left_out
from stabkit.rundir.run_dir import RunBusyError, RunDir
from stabkit.rundir.status import LOST_AFTER_S, Standing, State, Status

__all__ = [
    "LOST_AFTER_S", "TABLES", "ForeignFolderError", "LeftOutWarning", "RunBusyError", "RunDir",
    "Standing", "State", "Status",
    "atomic_write", "claim_for_file", "claim_for_import", "claim_for_monitor", "claim_for_run",
    "claim_for_sweep", "commit", "find_runs", "left_out", "same_folder", "utc_now",
]  # fmt: skip
