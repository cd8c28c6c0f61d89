"""Run folders: paths, atomic files, status, log, lock, search."""

from stabkit.rundir.claim import (
    ForeignFolderError,
    claim_for_file,
    claim_for_import,
    claim_for_monitor,
    claim_for_run,
    claim_for_sweep,
)
from stabkit.rundir.files import (
    LinkedError,
    append_to,
    atomic_write,
    own_folder,
    read_file,
    refuse_link,
    remove_dead,
    same_folder,
    utc_now,
    whole,
)
from stabkit.rundir.find import TABLES, LeftOutWarning, find_runs, left_out
from stabkit.rundir.run_dir import RunBusyError, RunDir
from stabkit.rundir.status import AHEAD, LOST_AFTER_S, Standing, State, Status

__all__ = [
    "AHEAD", "LOST_AFTER_S", "TABLES", "ForeignFolderError", "LeftOutWarning", "LinkedError",
    "RunBusyError", "RunDir", "Standing", "State", "Status",
    "append_to", "atomic_write", "claim_for_file", "claim_for_import", "claim_for_monitor",
    "claim_for_run", "claim_for_sweep", "find_runs", "left_out", "own_folder", "read_file",
    "refuse_link", "remove_dead", "same_folder", "utc_now", "whole",
]  # fmt: skip
