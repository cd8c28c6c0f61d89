"""Scores that are no share of right answers: rewards, PSNR, FID."""

from pathlib import Path

import numpy as np
import pytest

from stabkit.analyze.diagnosis import Diagnosis
from stabkit.convert.convert import convert
from stabkit.convert.scores import is_score, proposed_target
from stabkit.convert.series import ConvertError, Series
from stabkit.convert.targets import parse_map
from stabkit.store.reader import StoredRun

EVALS = 200


def curve(seed: int, worst: float, best: float, falls: bool) -> np.ndarray:
    """Return a noisy curve from `worst` to `best`; if it `falls`, half of it is lost at 130."""
    rng = np.random.default_rng(seed)
    share = 0.05 + 0.85 * (1 - np.exp(-np.arange(EVALS) / 30)) + rng.normal(0, 0.015, EVALS)
    share[130:] -= 0.45 if falls else 0
    return worst + (best - worst) * share


def converted(folder: Path, name: str, values: np.ndarray, *pairs: str) -> StoredRun:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [f"{100 * i},{value}" for i, value in enumerate(values)]
    (folder / "log.csv").write_text("\n".join([f"step,{name}", *rows]) + "\n")
    (run,) = convert(folder / "log.csv", folder / "run", pairs)
    return StoredRun(run.folder)


@pytest.mark.parametrize(
    ("name", "worst", "best"),
    [("rollout/ep_rew_mean", -200, 250), ("val_psnr", 12, 34), ("FID", 300, 8)],
)
@pytest.mark.parametrize("seed", range(3))
def test_the_proposed_map_judges_a_score(tmp_path, name, worst, best, seed):
    """The note's own target is what a user pastes. The scale may point down, as that of FID."""
    for falls in (True, False):
        folder = tmp_path / str(falls)
        values = curve(seed, worst, best, falls)
        told = converted(folder / "told", name, values)
        assert Diagnosis(told).verdict == "unknown"
        (note,) = [n for n in told.dir.read_meta()["converted"]["notes"] if "a score" in n]
        pair = note.split("--map ")[1].split(". ")[0]
        judged = converted(folder / "judged", name, values, pair)
        assert Diagnosis(judged).verdict == ("unstable" if falls else "stable")
        last = float(judged.evals(name)["value"].iloc[-1])
        assert last == pytest.approx(0.5 if falls else 0.95, abs=0.1)


def test_proposed_ends_enclose_the_values() -> None:
    steps = np.arange(4)
    for name, values, target in (
        ("reward", [-21, -3, np.nan, 18.4], "score:reward:-21:19"),
        (
            "eval=reward x:1",
            [1e9, 1e9 + 200, 1e9 - 150, 1e9],
            "score:eval_reward_x_1:999999850:1000000200",
        ),
        ("fid", [np.inf, 212.3, 80, 9.1], "score:fid:220:0"),
        ("val/ssim", [0.512, 0.9, 0.91, 0.934], "score:val/ssim:0.51:0.94"),
    ):
        assert is_score(name)
        assert proposed_target(name, [Series(steps, np.array(values))]) == target
        (parsed,) = parse_map([f"{name}={target}"]).items()
        assert parsed[0] == name
    assert proposed_target("reward", [Series(steps, np.full(4, 5.0))]) is None
    assert not is_score("entropy")


def test_one_scale_is_proposed_for_all_runs_of_a_log(tmp_path: Path) -> None:
    rows = [
        f"{run},{step},{low + step}" for run, low in (("a", 0), ("b", -90)) for step in range(9)
    ]
    (tmp_path / "log.csv").write_text("\n".join(["run,step,reward", *rows]) + "\n")
    told = convert(tmp_path / "log.csv", tmp_path / "runs")
    assert {option for run in told for option in run.plan.options} == {
        "--map=reward=score:reward:-90:8"
    }


def test_infinite_values_of_a_score_are_left_out_and_told(tmp_path: Path) -> None:
    values = np.array([1.0, np.inf, 5.0, -np.inf, np.nan, 3.0])
    run = converted(tmp_path, "reward", values, "reward=score:reward:0:10")
    assert run.evals("reward")["value"].dropna().tolist() == [0.1, 0.5, 0.3]
    assert "2 infinite values left out" in str(run.dir.read_meta()["converted"])


@pytest.mark.parametrize(
    "text", ["score:r", "score:r:0", "score:r:0:x", "score:r:1:1", "score::0:1"]
)
def test_a_score_needs_its_two_ends(text: str) -> None:
    with pytest.raises(ConvertError, match="the worst value and the best"):
        parse_map([f"reward={text}"])


def test_values_beyond_the_ends_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match=r"holds 25.*between 0 and 20.*from -?\d"):
        converted(tmp_path, "reward", np.array([1.0, 25.0, 3.0]), "reward=score:reward:0:20")


def test_sample_counts_are_not_of_a_score(tmp_path: Path) -> None:
    run = converted(tmp_path, "reward", np.array([1.0, 5.0, 3.0]), "reward=score:my:reward:0:20")
    assert run.evals("my:reward")["value"].tolist() == [0.05, 0.25, 0.15], "a name with a colon"
    with pytest.raises(ConvertError, match="--n: not with the score reward"):
        convert(tmp_path / "log.csv", tmp_path / "n", ["reward=score:reward:0:20"], n=100)
