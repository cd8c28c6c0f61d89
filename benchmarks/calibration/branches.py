"""Measure the verdicts on simulated branch studies: how often each is given, by the truth."""

from collections import Counter
from functools import partial

from benchmarks.calibration.branch_studies import FULL, QUICK, Size, Truth, simulated_table
from benchmarks.calibration.scores import TESTING, Each, interval, table
from stabkit.branch.judge.attribution import judge_branches
from stabkit.branch.judge.exact_tests import Share, fewer, fewer_of_few, smallest
from stabkit.branch.judge.intervention_verdict import ALPHA, OWN_ALPHA, SPARED, VERDICTS, falls_less

SIZES = {"--quick": QUICK, "--full": FULL}
STUDIES = 4  # times the number that is asked for: simulated studies are quick
TRUTHS: dict[str, tuple[float, Truth, float | None]] = {
    # words: chance of the event, truth of the intervention, chance of its family's shams
    "cure": (1.0, Truth(0.0), None),
    "cure, the event comes in 95 %": (0.95, Truth(0.0), None),
    "cure in 9 of 10": (1.0, Truth(0.1), None),
    "cure at a price of 8 points": (1.0, Truth(0.0, price=8.0), None),
    "cure at a price of 4 points": (1.0, Truth(0.0, price=4.0), None),
    "postpones": (1.0, Truth(0.0, moved=0.95), None),
    "halves the risk": (1.0, Truth(0.5), None),
    "A/A": (1.0, Truth(1.0), None),
    "it harms by 8 points": (1.0, Truth(1.0, price=8.0), None),
    "A/A, the event comes in 95 %": (0.95, Truth(0.95), None),
    "A/A, the event comes in 50 %": (0.5, Truth(0.5), None),
    "sham: its size prevents in 30 %": (1.0, Truth(0.7), 0.7),
    "sham: its size prevents in 60 %": (1.0, Truth(0.4), 0.4),
    "sham: its size prevents in 50 %": (1.0, Truth(0.5), 0.5),
    "sham: its size prevents in 80 %": (1.0, Truth(0.2), 0.2),
    "sham: its size prevents always": (1.0, Truth(0.0), 0.0),
}
PREVENTED = VERDICTS[:2]


def branch_tables(each: Each, runs: int) -> str:
    """Return the tables of verdicts; `runs`: a quarter of the studies of each truth and size."""
    parts = ["### Branches: the verdict by the truth\n"]
    for name, size in SIZES.items():
        parts += [f"{name}: {size_words(size)}\n", verdict_table(each, runs * STUDIES, size)]
    return "\n".join([*parts, "### Branches: what the numbers allow\n", reach_table()])


def size_words(size: Size) -> str:
    """Say how many branches a study of a size has."""
    return (
        f"{size.placebos} placebos, {size.shams} shams of {size.families} families, "
        f"{size.interventions} interventions of {size.replicates} replicates."
    )


def verdict(size: Size, truth: str, seed: int) -> tuple[str, bool]:
    """Return what is said of the first intervention of a study.

    That is the verdict, without what it needs, and whether accuracy falls less than in the shams.
    """
    repeats, of, own = TRUTHS[truth]
    judged = judge_branches(simulated_table(seed, size, repeats, of, own))
    row = judged.interventions.iloc[0]
    return str(row["verdict"]).partition(" (")[0], falls_less(row)


def verdict_table(each: Each, studies: int, size: Size) -> str:
    rows = []
    for truth in TRUTHS:
        found = each(partial(verdict, size, truth), studies, TESTING)
        counts = Counter(word for word, _ in found)
        prevented = sum(counts[word] for word in PREVENTED)
        others = [f"{100 * counts[word] / studies:.1f} %" for word in VERDICTS[1:]]
        less = interval(sum(smaller for _, smaller in found), studies)
        rows.append([truth, str(studies), interval(prevented, studies), *others, less])
    return table(["truth", "studies", "prevented, with or without a price", "of which at a price",
                  *VERDICTS[2:], "falls less"], rows)  # fmt: skip


def reach_table() -> str:
    """Return what a study of each size can find at best: smallest p-values, replicates lost."""
    rows = []
    for name, (tests, n, shams, families, placebos) in SIZES.items():
        own, others = Share(shams // families, shams // families), placebos + shams
        spared = [lost for lost in range(n + 1) if _passes(Share(lost, n), others, own, tests)]
        best, best_own = smallest(n, others), fewer_of_few(Share(0, n), own)
        rows.append([name, f"{best:.2g}", f"{min(1.0, tests * best):.2g}", f"{best_own:.2g}",
                     f"{max(spared)} of {n}" if spared else "none can be found"])  # fmt: skip
    head = ["size", "p against placebos and shams", "corrected (Holm)", "against its own family",
            "replicates that may still have the event"]  # fmt: skip
    return table(head, rows)


def _passes(these: Share, others: int, own: Share, tests: int) -> bool:
    shown = tests * fewer(these, Share(others, others)) <= ALPHA
    return shown and fewer_of_few(these, own) <= OWN_ALPHA and these.value <= SPARED
