"""How often the detectors are wrong, and what they miss: python -m benchmarks.calibration

Prints, on simulated runs (stabkit.detect.simulate): false alarms on healthy runs with exact 95 %
intervals, power against depth, errors of onset and recovery, and the F1 of finding planted events
against other detectors. Every other detector's parameter is the best of its grid on simulations of
its own seeds (TUNING); the tables are of other seeds (TESTING). The parameters of `find_dips`,
`find_drift` and `find_spikes` were set on neither. Names of tables ask for those alone, `--runs N`
for another number of healthy runs; all of it takes about 15 minutes on two cores.
"""

import argparse
import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
from scipy import signal, stats

from stabkit.detect import find_dips, find_drift, find_spikes, find_stale_moments
from stabkit.detect.robust import FloatArray, difference_scale
from stabkit.detect.simulate import EVERY, TRENDS, Curve, Planted, simulate_curve, simulate_norms

TUNING, TESTING = 1_000_000, 2_000_000  # first seeds
EVALS = 100
Each = Callable[..., list[Any]]  # applies a function to seeds, in processes
Spans = list[tuple[int, int]]  # first and last index of what was found or planted

# --- dips: the detectors compared -----------------------------------------------------------------


def ours(curve: Curve, samples: str = "bits") -> Spans:
    options = {"bits": {"correct": curve.correct}, "n": {"n": curve.correct.shape[1]}, "none": {}}
    return _spans(find_dips(curve.step, curve.accuracy, **options[samples]), curve)


def ours_for_f1(curve: Curve, k: float) -> Spans:
    """The same with a lower bar, chosen like the parameter of every other detector."""
    options = {"threshold": k, "min_fall": 2.0, "alpha": 0.05}
    return _spans(find_dips(curve.step, curve.accuracy, correct=curve.correct, **options), curve)


def _spans(found: pd.DataFrame, curve: Curve) -> Spans:
    ends = found["recovery"].fillna(curve.step[-1] + EVERY) - EVERY
    return [
        (int(a) // EVERY + 1, int(b) // EVERY) for a, b in zip(found["onset"], ends, strict=True)
    ]


def peaks(curve: Curve, k: float) -> Spans:
    """scipy find_peaks on the inverted curve: prominence of k noise scales, two wide or more."""
    noise = max(difference_scale(curve.accuracy), 1e-3)
    _, shown = signal.find_peaks(-curve.accuracy, prominence=k * noise, width=2, rel_height=0.8)
    return _merged(
        (math.ceil(a), math.floor(b))
        for a, b in zip(shown["left_ips"], shown["right_ips"], strict=True)
    )


def pelt(curve: Curve, k: float) -> Spans:
    """ruptures PELT, l2, BIC-type penalty k s^2 ln T: segments a point below the one before."""
    import ruptures

    noise = max(difference_scale(curve.accuracy), 1e-3)
    model = ruptures.Pelt(model="l2", min_size=2, jump=1).fit(curve.accuracy)
    ends = model.predict(pen=k * noise**2 * math.log(curve.accuracy.size))
    begins = [0, *ends[:-1]]
    means = [curve.accuracy[a:b].mean() for a, b in zip(begins, ends, strict=True)]
    return [(begins[i], ends[i] - 1) for i in range(1, len(ends)) if means[i] < means[i - 1] - 0.01]


def rolling_sigma(values: FloatArray, k: float, window: int) -> Spans:
    """Above mean + k std of the last `window` values, itself among them; half of it is enough."""
    flags = []
    for i in range(values.size):
        past = values[max(0, i - window + 1) : i + 1]
        if past.size >= window // 2 and values[i] > past.mean() + k * past.std():
            flags.append((i, i))
    return _merged(flags)


def times_mean(values: FloatArray, k: float, window: int) -> Spans:
    """Above k times the mean of the `window` values before."""
    flags = [
        (i, i)
        for i in range(window // 2, values.size)
        if values[i] > k * values[max(0, i - window) : i].mean()
    ]
    return _merged(flags)


def _merged(flags: Iterable[tuple[int, int]], gap: int = 2) -> Spans:
    out: Spans = []
    for a, b in sorted(flags):
        if out and a - out[-1][1] <= gap:
            out[-1] = (out[-1][0], max(b, out[-1][1]))
        else:
            out.append((a, b))
    return out


def error_sigma(curve: Curve, k: float) -> Spans:
    return rolling_sigma(1 - curve.accuracy, k, 128)


def error_mean(curve: Curve, k: float) -> Spans:
    return times_mean(1 - curve.accuracy, k, 128)


DIP_DETECTORS: dict[str, tuple[Callable[[Curve, float], Spans], Sequence[float]]] = {
    # name -> detector, the grid of its parameter k, from eager to silent
    "find_dips, threshold k": (ours_for_f1, (1.5, 2, 2.5, 3, 3.5, 4, 5)),
    "find_peaks, prominence k s": (peaks, (2, 3, 4, 5, 6, 8, 10, 12, 15)),
    "ruptures PELT, penalty k s2 ln T": (pelt, (2, 3, 5, 8, 12, 20, 30, 50)),
    "error above mean + k std of the last 128": (error_sigma, (2, 2.5, 3, 4, 6)),
    "error above k times the mean of the last 128": (error_mean, (1.1, 1.2, 1.5, 2, 3)),
}
SILENT = 0.01  # of healthy runs alarm

# --- dips: simulated runs -------------------------------------------------------------------------


def random_run(seed: int, noise: float, ar: float, n: int = 1000) -> tuple[Curve, list[Planted]]:
    """A run with none, one, two or three dips of 2 to 12 points and 2 to 15 evaluations."""
    rng = np.random.default_rng(seed)
    planted: list[Planted] = []
    at = int(rng.integers(10, 30))
    for _ in range(int(rng.integers(0, 4))):
        width = int(rng.integers(2, 16))
        if at + width > EVALS - 3:
            break
        shape = ("box", "v", "sawtooth")[int(rng.integers(3))]
        planted.append(Planted(at, width, float(rng.uniform(0.02, 0.12)), shape))  # type: ignore[arg-type]
        at += width + int(rng.integers(12, 40))
    trend = list(TRENDS)[int(rng.integers(len(TRENDS)))]
    curve = simulate_curve(rng, evals=EVALS, n=n, trend=trend, noise=noise, ar=ar,
                           planted=tuple(planted))  # fmt: skip
    return curve, planted


def healthy_dips(ar: float, samples: str, seed: int) -> tuple[int, int]:
    """Dips found in a healthy run, drifts found in it; trends take turns."""
    rng = np.random.default_rng(seed)
    curve = simulate_curve(rng, evals=EVALS, trend=list(TRENDS)[seed % len(TRENDS)], ar=ar)
    options = {"bits": {"correct": curve.correct}, "n": {"n": 1000}, "none": {}}[samples]
    drifts = find_drift(curve.step, curve.accuracy, **options)
    return len(ours(curve, samples)), len(drifts)


def healthy_alarm(detector: Callable[[Curve], Spans], ar: float, seed: int) -> bool:
    rng = np.random.default_rng(seed)
    trend = list(TRENDS)[seed % len(TRENDS)]
    return len(detector(simulate_curve(rng, evals=EVALS, trend=trend, ar=ar))) > 0


def one_dip(
    depth: float, width: int, ar: float, samples: str, seed: int
) -> tuple[bool, float, float]:
    """Whether a box dip in the middle part of a run was found; errors of its ends."""
    rng = np.random.default_rng(seed)
    at = int(rng.integers(20, 80))
    trend = ("flat", "linear", "saturating")[seed % 3]
    curve = simulate_curve(
        rng, evals=EVALS, trend=trend, ar=ar, planted=(Planted(at, width, depth),)
    )
    for first, last in ours(curve, samples):
        if first < at + width and last >= at:
            return True, first - at, last + 1 - (at + width)
    return False, math.nan, math.nan


def matched(planted: Spans, found: Spans) -> tuple[int, int, int]:
    """Hits, false alarms, misses: found and planted spans that overlap, one to one."""
    left, hits = list(found), 0
    for a, b in planted:
        near = [span for span in left if span[0] <= b and span[1] >= a]
        if near:
            hits += 1
            left.remove(max(near, key=lambda s: min(s[1], b) - max(s[0], a)))
    return hits, len(left), len(planted) - hits


def dip_scores(
    detector: Callable[[Curve], Spans], noise: float, ar: float, seed: int
) -> tuple[int, int, int]:
    curve, planted = random_run(seed, noise, ar)
    return matched([(dip.at, dip.at + dip.width - 1) for dip in planted], detector(curve))


def f1(scores: Iterable[tuple[int, int, int]]) -> float:
    hits, false, missed = np.sum(list(scores), axis=0)
    return float(2 * hits / max(1, 2 * hits + false + missed))


# --- spikes ---------------------------------------------------------------------------------------


def our_spikes(values: FloatArray) -> Spans:
    found = find_spikes(np.arange(values.size), values)
    return list(zip(found["onset"].tolist(), found["end"].tolist(), strict=True))


SPIKE_PEERS: dict[str, tuple[Callable[..., Spans], Sequence[float], int]] = {
    "mean + k std of the last 128": (rolling_sigma, (6, 5, 4, 3), 128),
    "k times the mean of the last 128": (times_mean, (3, 2, 1.5, 5), 128),
}


def spike_scores(
    detector: Callable[[FloatArray], Spans], sigma: float, ar: float, seed: int
) -> tuple[int, int, int]:
    """Five spikes of up to 20 times the median in 2,000 steps; at least 10 sigma high."""
    rng = np.random.default_rng(seed)
    at = np.sort(rng.choice(np.arange(3, 38), 5, replace=False)) * 50
    lowest = math.exp(10 * sigma)
    spikes = tuple(
        (int(t), float(np.exp(rng.uniform(math.log(lowest), math.log(4 * lowest)))), growth)
        for t, growth in zip(at, rng.integers(1, 6, 5).tolist(), strict=True)
    )
    values = simulate_norms(rng, steps=2000, sigma=sigma, ar=ar, spikes=spikes)
    return matched([(t - 5, t + 5) for t, _, _ in spikes], detector(values))


def healthy_spikes(
    detector: Callable[[FloatArray], Spans], sigma: float, ar: float, tails: float | None, seed: int
) -> int:
    rng = np.random.default_rng(seed)
    return len(detector(simulate_norms(rng, steps=10_000, sigma=sigma, ar=ar, tails=tails)))


# --- tables ---------------------------------------------------------------------------------------


def interval(hits: int, runs: int) -> str:
    found = stats.binomtest(hits, runs).proportion_ci(0.95)
    return f"{hits / runs:.2%} ({found.low:.2%} to {found.high:.2%})"


def per_steps(events: int, steps: int) -> str:
    low = stats.chi2.ppf(0.025, 2 * events) / 2 if events else 0.0
    high = stats.chi2.ppf(0.975, 2 * events + 2) / 2
    scale = 1e5 / steps
    return f"{events * scale:.2f} ({low * scale:.2f} to {high * scale:.2f})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    lines = [list(head), ["---"] * len(head), *(list(row) for row in rows)]
    print("\n".join(f"| {' | '.join(line)} |" for line in lines), flush=True)
    print(flush=True)


def healthy(each: Each, runs: int) -> None:
    print("## Healthy runs: false alarms\n")
    rows = []
    for samples, label in (("bits", "bits"), ("n", "n alone"), ("none", "neither")):
        for ar in (0.0, 0.5, 0.8):
            found = each(partial(healthy_dips, ar, samples), runs)
            dips, drifts = (sum(f[i] > 0 for f in found) for i in (0, 1))
            steps = runs * EVALS * EVERY
            rate = per_steps(sum(f[0] for f in found), steps)
            rows.append([label, f"{ar}", interval(dips, runs), rate, interval(drifts, runs)])
    table(["known of the samples", "AR(1)", "runs with a dip", "dips in 10^5 steps",
           "runs with a drift"], rows)  # fmt: skip


def power(each: Each, runs: int) -> None:
    print("## Power: dips of four evaluations, n = 1,000\n")
    depths, count = (0.02, 0.03, 0.04, 0.05, 0.07, 0.10), max(60, runs // 5)
    rows = []
    for samples, label in (("bits", "bits"), ("n", "n alone"), ("none", "neither")):
        for ar in (0.0, 0.5):
            cells = []
            for depth in depths:
                found = each(partial(one_dip, depth, 4, ar, samples), count)
                cells.append(interval(sum(f[0] for f in found), count))
            rows.append([label, f"{ar}", *cells])
    table(["known", "AR(1)", *(f"{100 * d:.0f} points" for d in depths)], rows)


def places(each: Each, runs: int) -> None:
    count = max(60, runs // 5)
    print("## Where: errors in evaluations, bits, those found\n")
    rows = []
    for ar in (0.0, 0.5):
        for depth, width in ((0.05, 4), (0.1, 4), (0.05, 10), (0.1, 10)):
            found = [f for f in each(partial(one_dip, depth, width, ar, "bits"), count) if f[0]]
            row = [f"{ar}", f"{100 * depth:.0f}", f"{width}"]
            for i in (1, 2):
                errors = np.array([f[i] for f in found])
                middle, size = np.median(errors), np.abs(errors)
                row += [f"{middle:+.0f}", f"{np.mean(size <= 1):.0%}"]
            rows.append(row)
    table(["AR(1)", "points", "evaluations", "median of onset", "within one",
           "median of recovery", "within one"], rows)  # fmt: skip


def dip_f1(each: Each, runs: int) -> None:
    print("## F1 on runs with up to three dips, and false alarms on healthy ones\n")
    settings = [(noise, ar) for ar in (0.0, 0.5) for noise in (0.0025, 0.005, 0.01)]
    count = max(40, runs // 10)

    def scores(detector: Callable[[Curve], Spans], first: int, size: int) -> list[float]:
        return [f1(each(partial(dip_scores, detector, *s), size, first)) for s in settings]

    def alarms(detector: Callable[[Curve], Spans], first: int) -> int:
        return sum(sum(each(partial(healthy_alarm, detector, ar), count, first))
                   for ar in (0.0, 0.5))  # fmt: skip

    chosen: list[tuple[str, str, Callable[[Curve], Spans]]] = [
        ("find_dips, as it is", "-", ours),
        ("find_dips, accuracy alone", "-", partial(ours, samples="none")),
    ]
    for name, (detector, grid) in DIP_DETECTORS.items():
        ready = [partial(detector, k=k) for k in grid]
        tuned = [np.mean(scores(d, TUNING, count // 2)) for d in ready]
        best = int(np.argmax(tuned))
        chosen.append((f"{name}: best F1", f"{grid[best]:g}", ready[best]))
        quiet = [i for i, d in enumerate(ready) if alarms(d, TUNING) <= SILENT * 2 * count]
        if quiet and quiet[0] != best:
            chosen.append((f"{name}: 1 % false", f"{grid[quiet[0]]:g}", ready[quiet[0]]))
    rows = [
        [name, k, interval(alarms(detector, TESTING), 2 * count),
         *(f"{score:.3f}" for score in scores(detector, TESTING, count))]
        for name, k, detector in chosen
    ]  # fmt: skip
    head = [f"{100 * noise:g} points, AR {ar}" for noise, ar in settings]
    table(["detector", "k", "healthy runs that alarm", *head], rows)


def spike_tables(each: Each, runs: int) -> None:
    print("## Spikes: events in 10^5 healthy steps, and F1 with five spikes in 2,000\n")
    norms = [(0.1, 0.0, None), (0.3, 0.0, None), (0.3, 0.5, None), (0.3, 0.9, None),
             (0.5, 0.0, None), (0.3, 0.0, 5.0)]  # fmt: skip
    count = max(10, runs // 20)
    rows = []
    for name, detector in [("find_spikes", our_spikes)] + [
        (f"{name}, k = {grid[0]:g}", partial(rule, k=grid[0], window=window))
        for name, (rule, grid, window) in SPIKE_PEERS.items()
    ]:
        alarms = [sum(each(partial(healthy_spikes, detector, *norm), count)) for norm in norms]
        rows.append([name, *(per_steps(a, count * 10_000) for a in alarms)])
    table(["detector", *(f"sigma {s}, AR {a}" + (f", t({t:g})" if t else "")
                         for s, a, t in norms)], rows)  # fmt: skip
    settings = [(0.1, 0.0), (0.1, 0.5), (0.3, 0.0), (0.3, 0.5)]
    rows = []
    found = [f1(each(partial(spike_scores, our_spikes, *s), count)) for s in settings]
    rows.append(["find_spikes", "-", *(f"{score:.3f}" for score in found)])
    for name, (rule, grid, window) in SPIKE_PEERS.items():
        tuned = [
            f1(s for setting in settings for s in each(
                partial(spike_scores, partial(rule, k=k, window=window), *setting),
                count // 2, TUNING))
            for k in grid
        ]  # fmt: skip
        best = grid[int(np.argmax(tuned))]
        ready = partial(rule, k=best, window=window)
        found = [f1(each(partial(spike_scores, ready, *s), count)) for s in settings]
        rows.append([name, f"{best:g}", *(f"{score:.3f}" for score in found)])
    table(["detector", "k", *(f"sigma {s}, AR {a}" for s, a in settings)], rows)


def stale_moments(setting: tuple[float | None, float, float], elements: int, steps: int) -> int:
    """Events in one simulated healthy layer under Adam."""
    tail, common, beta2 = setting
    rng = np.random.default_rng([0, elements, int(beta2 * 1e4)])
    v, rms = np.zeros(elements), np.empty(steps)
    for t in range(steps):
        g = rng.standard_t(tail, elements) if tail else rng.standard_normal(elements)
        g *= np.exp(common * rng.standard_normal())
        v = beta2 * v + (1 - beta2) * g * g
        rms[t] = np.sqrt(np.mean(g * g / v) * (1 - beta2 ** (t + 1)))
    return len(find_stale_moments(np.arange(steps), rms, beta2))


def stale_tables(each: Each, runs: int) -> None:
    print("## Stale moments: events in 10^5 healthy steps\n")
    del each  # one long run a cell
    sizes = {1: 50 * runs, 100: 50 * runs, 10_000: 10 * runs}
    rows = []
    kinds = [(None, 0.0), (5.0, 0.0), (3.0, 0.0), *((None, s) for s in (0.1, 0.2, 0.3, 0.4))]
    for tail, common in kinds:
        for beta2 in (0.95, 0.999):
            counts = [
                f"{stale_moments((tail, common, beta2), e, s) / s * 1e5:.0f}"
                for e, s in sizes.items()
            ]
            rows.append([f"t({tail:g})" if tail else "normal", f"{common:g}", f"{beta2}", *counts])
    table(["elements", "factor's sigma", "beta2", "1 element", "100 elements", "10,000 elements"],
          rows)  # fmt: skip


TABLES = {
    "healthy": healthy,
    "power": power,
    "places": places,
    "dips-f1": dip_f1,
    "spikes": spike_tables,
    "stale-moments": stale_tables,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="*", help=f"of {', '.join(TABLES)} (default: all)")
    parser.add_argument("--runs", type=int, default=2000, help="healthy runs a setting")
    arguments = parser.parse_args()
    if wrong := set(arguments.tables) - set(TABLES):
        parser.error(f"no table {', '.join(sorted(wrong))}; there are {', '.join(TABLES)}")
    with ProcessPoolExecutor(os.cpu_count()) as pool:

        def each(function: Callable[[int], Any], count: int, first: int = TESTING) -> list[Any]:
            return list(pool.map(function, range(first, first + count), chunksize=20))

        for name in arguments.tables or TABLES:
            TABLES[name](each, arguments.runs)


if __name__ == "__main__":
    main()
