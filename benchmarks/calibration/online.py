"""Calibrate dips while a run trains: what is ever confirmed, how late, and at what cost."""

import time
from functools import partial

import numpy as np

from benchmarks.calibration.scores import TESTING, Each, delay_cells, interval, table
from stabkit.detect import find_dips
from stabkit.detect.online_dips import OnlineDips
from stabkit.detect.simulate import DIP_MIX, HEALTHY, LONG, REALISTIC, SimulatedCurve, healthy

MANY_LOOKS = "1,000 evaluations"
BASES = ("constant", "real_lr004", "real_lr016")
FORMS = (
    "box, 4 x 5 points, middle",
    "box, 4 x 5 points, early",
    "V, 8 x 6 points",
    "bell, 12 x 5 points",
    "nested, 20 x 3 and 5 x 5 points",
    "end, last 3, 6 points",
)
LENGTHS = {"30 evaluations": 10, "constant": 10, "1,000 evaluations": 2, "10,000 evaluations": 1}


def online_tables(each: Each, runs: int) -> str:
    """Return the tables of dips found online; `runs` healthy runs of each realistic scenario."""
    return "\n".join([
        "### Online dips: healthy runs\n", false_alarms(each, runs),
        "### Online dips: delay\n", delays(each, max(4, runs // 10)),
        "### Online dips: cost of a look\n", costs(each),
    ])  # fmt: skip


def watched(curve: SimulatedCurve) -> tuple[dict[str, list[int]], int]:
    """Return the steps at which dips changed to each state, and the number confirmed at the end."""
    dips = OnlineDips(chance=0.0)
    told: dict[str, list[int]] = {"suspected": [], "confirmed": [], "withdrawn": []}
    for step, bits in zip(curve.step.tolist(), curve.correct, strict=True):
        for news in dips.add(step, bits):
            told[news.state].append(news.at)
    for news in dips.finish():
        told[news.state].append(news.at)
    return told, dips.confirmed


def healthy_run(name: str, seed: int) -> tuple[bool, bool, bool, bool]:
    """Tell whether a dip was suspected, confirmed, is left at the end, and found afterwards."""
    curve = healthy(name, seed)
    told, count = watched(curve)
    found = find_dips(curve.step, curve.accuracy, correct=curve.correct)
    return bool(told["suspected"]), bool(told["confirmed"]), count > 0, len(found) > 0


def false_alarms(each: Each, runs: int) -> str:
    rows, total = [], np.zeros(5, dtype=int)
    for name in HEALTHY:
        if name in LONG and name != MANY_LOOKS:
            continue
        count = max(2, runs if name in REALISTIC else runs // 8)
        seen = np.array(each(partial(healthy_run, name), count, TESTING)).sum(axis=0)
        total += [count, *seen]
        rows.append([name, str(count), *(interval(n, count) for n in seen)])
    rows.append(["**all**", str(total[0]), *(interval(n, total[0]) for n in total[1:])])
    head = ["healthy scenario", "runs", "ever suspected", "ever confirmed", "left at the end",
            "found afterwards"]  # fmt: skip
    return table(head, rows)


def delay(base: str, form: str, seed: int) -> tuple[float, float, bool]:
    """Return by how many evaluations after the first low one a dip was suspected, and confirmed.

    And whether the count at the end is that of one search of the whole run.
    """
    planted = DIP_MIX[form]
    curve = healthy(base, seed, planted)
    told, count = watched(curve)
    found = find_dips(curve.step, curve.accuracy, correct=curve.correct)
    began = planted[0].at
    late = []
    for state in ("suspected", "confirmed"):
        at = [int(np.searchsorted(curve.step, step)) for step in told[state]]
        after = [i - began for i in at if i >= began]
        late.append(min(after) if after else np.nan)
    return late[0], late[1], count == len(found)


def delays(each: Each, count: int) -> str:
    rows, same = [], 0
    for base in BASES:
        for form in FORMS:
            late = np.array(each(partial(delay, base, form), count, TESTING))
            same += int(late[:, 2].sum())
            rows.append([base, form, *delay_cells(late[:, :2])])
    head = ["scenario", "planted", "suspected", "evaluations later", "confirmed",
            "evaluations later"]  # fmt: skip
    return (
        f"{count} runs a row; evaluations since the first low one: median, 10 % to 90 %. In "
        f"{interval(same, count * len(rows))} of all runs as many dips are confirmed in the end "
        "as one search of the whole run finds.\n\n" + table(head, rows)
    )


def cost(name: str, seed: int) -> tuple[int, float, float]:
    """Return evaluations, mean and largest CPU milliseconds of a look at a healthy run."""
    curve = healthy(name, seed)
    dips, spent = OnlineDips(chance=0.0), []
    for step, bits in zip(curve.step.tolist(), curve.correct, strict=True):
        began = time.process_time()
        dips.add(step, bits)
        spent.append(1e3 * (time.process_time() - began))
    return len(spent), float(np.mean(spent)), max(spent)


def costs(each: Each) -> str:
    rows = []
    for name, count in LENGTHS.items():
        seen = each(partial(cost, name), count, TESTING)
        means = np.array([mean for _, mean, _ in seen])
        rows.append([f"{seen[0][0]:,}", f"{np.median(means):.2f}",
                     f"{max(most for *_, most in seen):.1f}"])  # fmt: skip
    return table(["evaluations of 1,000 samples", "CPU ms a look, mean", "largest"], rows)
