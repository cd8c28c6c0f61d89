"""Run folders: paths, atomic files, status, log, lock, ownership, search."""

from stabkit.rundir.atomic import atomic_write, remove_dead, whole
from stabkit.rundir.claim import (
    MONITOR_SETTINGS,
    ForeignFolderError,
    claim_for_file,
    claim_for_import,
    claim_for_monitor,
    claim_for_run,
    claim_for_sweep,
    is_of_monitor,
)
from stabkit.rundir.find import TABLES, LeftOutWarning, find_runs, left_out
from stabkit.rundir.hidden_folder import hidden_folder
from stabkit.rundir.kept_states import KeptState, Ring, kept_states
from stabkit.rundir.lock import HeldFolder, RunBusyError, same_folder
from stabkit.rundir.log import LIFECYCLE
from stabkit.rundir.missing_rows import missing_rows, without_missing_rows
from stabkit.rundir.notes import Note
from stabkit.rundir.own_files import (
    LinkedError,
    append_to,
    make_inside,
    own_folder,
    read_file,
    refuse_link,
)
from stabkit.rundir.part_names import (
    count_parts,
    part_name,
    part_numbers,
    tables_without_parts,
)
from stabkit.rundir.run_dir import RunDir
from stabkit.rundir.status import AHEAD, LOST_AFTER_S, Standing, State, Status, utc_now

__all__ = [
    "AHEAD", "LIFECYCLE", "LOST_AFTER_S", "MONITOR_SETTINGS", "TABLES", "ForeignFolderError",
    "HeldFolder", "KeptState", "LeftOutWarning", "LinkedError", "Note", "Ring", "RunBusyError",
    "RunDir", "Standing", "State", "Status", "append_to", "atomic_write", "claim_for_file",
    "claim_for_import", "claim_for_monitor", "claim_for_run", "claim_for_sweep", "count_parts",
    "find_runs", "hidden_folder", "is_of_monitor", "kept_states", "left_out", "make_inside",
    "missing_rows", "own_folder", "part_name", "part_numbers", "read_file", "refuse_link",
    "remove_dead", "same_folder", "tables_without_parts", "utc_now", "whole",
    "without_missing_rows",
]  # fmt: skip
