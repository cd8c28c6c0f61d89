"""Prove that a control is the parent's own training, bit for bit."""

from pathlib import Path
from typing import NamedTuple

from stabkit.branch.study import BranchStudy
from stabkit.replay.plan import attempts_of
from stabkit.replay.proof import Proof, ReplayDiffersError
from stabkit.rundir import RunDir
from stabkit.store.reader import StoredRun
from stabkit.train.exactness import changes, in_words, likely_cause


class Proven(NamedTuple):
    """How much of a control was compared with the parent."""

    rows: int
    evaluations: int


def prove_control(study: BranchStudy, begin: int, control: Path) -> Proven:
    """Compare all that a control recorded from step `begin` on with the record of the parent.

    Raises ReplayDiffersError that says from which step on it differs, in what, and what has
    changed.
    """
    proof = Proof(StoredRun(study.parent).as_of_now().keeping(), control)
    try:
        proof.compare(begin, study.horizon)
        proof.compare_last(study.horizon)
    except ReplayDiffersError as error:
        before, now = (attempts_of(RunDir(folder))[-1] for folder in (study.parent, control))
        cause = likely_cause(in_words(changes(before, now)))
        raise ReplayDiffersError(f"{error}. {cause}") from None
    return Proven(proof.rows, proof.evaluations)
