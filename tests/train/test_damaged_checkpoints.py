"""Checkpoints and files of weights that are damaged, hostile or of another kind.

Every command that reads them refuses them by name, and fills nothing from them.
"""

import os
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stabkit.cli import main
from stabkit.monitor.torch_files import read_tensors
from stabkit.rundir import RunDir
from stabkit.train.loop import train
from stabkit.train.state import build_state, load_state
from tests.conftest import SMALL, small_config

CONFIG = small_config("train.steps=12", "optim.warmup_steps=0")
WORDS = [*SMALL, "train.steps=12", "optim.warmup_steps=0"]
FLIPS = 300


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run, and export its weights beside it."""
    folder = tmp_path_factory.mktemp("checkpoints")
    train(CONFIG, RunDir(folder / "run"))
    assert main(["export", str(folder / "run"), "-o", str(folder / "weights.pt")]) == 0
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """Copy both, with the status of a run that has steps left instead of `done`."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    RunDir(tmp_path / "run").status_file.unlink()
    return tmp_path


def same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return isinstance(right, Tensor) and left.dtype == right.dtype and left.equal(right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def flip(file: Path, content: bytes, *bits: int) -> None:
    changed = bytearray(content)
    for bit in bits:
        changed[bit // 8] ^= 1 << bit % 8
    file.write_bytes(changed)


def is_refused(file: Path, whole: dict[str, Any]) -> bool:
    """Check that the file is refused by name, or else that what is read is what was written."""
    error = None
    try:
        found = read_tensors(file)
    except ValueError as refusal:
        error = str(refusal)
    if error is None:
        assert same(found, whole)
        return False
    assert error.startswith(f"{file}: ")
    assert "\n" not in error
    return True


@pytest.mark.lengthy
@pytest.mark.parametrize("at_once", [1, 20])
def test_flipped_bits_are_never_read_as_values(folder: Path, at_once: int) -> None:
    file = RunDir(folder / "run").checkpoint_file
    content, whole, rng = file.read_bytes(), read_tensors(file), random.Random(at_once)
    refused = 0
    for _ in range(FLIPS):
        flip(file, content, *rng.sample(range(8 * len(content)), at_once))
        refused += is_refused(file, whole)
    assert refused > FLIPS / 2


@pytest.mark.lengthy
def test_flipped_bits_of_the_file_structure_are_never_read_as_values(tmp_path: Path) -> None:
    """Flip every byte of a small file: headers, the pickled structure, padding, the directory."""
    file = tmp_path / "a.pt"
    torch.save({"run": "abcd", "step": 3, "model": {"a": torch.arange(3.0)}}, file)
    content, whole, rng = file.read_bytes(), read_tensors(file), random.Random(0)
    for byte in range(len(content)):
        flip(file, content, 8 * byte + rng.randrange(8))
        is_refused(file, whole)


def in_a_tensor(file: Path) -> None:
    """Flip one bit of the largest member of the archive."""
    with zipfile.ZipFile(file) as archive:
        member = max(archive.infolist(), key=lambda m: m.file_size)
    content = file.read_bytes()
    name, extra = struct.unpack_from("<HH", content, member.header_offset + 26)
    start = member.header_offset + 30 + name + extra
    flip(file, content, 8 * (start + member.file_size // 2))


def changed(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Write the file with other content, as torch writes it."""

    def act(file: Path) -> None:
        content = torch.load(file, weights_only=True)
        change(content)
        torch.save(content, file)

    return act


def compressed(file: Path) -> None:
    """Write a member that is small in the file and would be 200 MB in memory."""
    with zipfile.ZipFile(file) as archive:
        members = {m.filename: archive.read(m) for m in archive.infolist()}
    last = list(members)[-1]
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            if name == last:
                archive.writestr(name, bytes(200_000_000), zipfile.ZIP_DEFLATED)
            else:
                archive.writestr(name, content)


def a_pickle(file: Path) -> None:
    class Runs:
        def __reduce__(self) -> object:
            return os.mkdir, (str(file.with_name("code was run")),)

    file.write_bytes(pickle.dumps({"run": Runs(), "step": 1, "model": {}}))


def a_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def first_weight(content: dict[str, Any]) -> str:
    return next(name for name, t in content["model"].items() if t.dim() == 2)


def other_weight(make: Callable[[Tensor], Any]) -> Callable[[Path], None]:
    def change(content: dict[str, Any]) -> None:
        for name in content["model"]:
            if name.endswith("backbone.norm.weight"):
                content["model"][name] = make(content["model"][name])

    return changed(change)


def first_moment(content: dict[str, Any]) -> dict[str, Any]:
    return next(iter(content["optimizer"]["state"].values()))


# what every command refuses, and what it says
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (in_a_tensor, "does not have the checksum it was given"),
    "cut": (lambda f: f.write_bytes(f.read_bytes()[:-900]), "it is damaged, or holds code"),
    "empty": (lambda f: f.write_bytes(b""), "it is damaged, or holds code"),
    "a bomb": (compressed, "is compressed, which torch.save never does"),
    "a pickle": (a_pickle, "holds code, which is never loaded"),
    "a list": (lambda f: torch.save([1], f), "holds list, not a dictionary"),
    "of another program": (
        lambda f: torch.save({"epoch": 3, "net": {"a": torch.ones(2)}}, f),
        "not a checkpoint of stabkit",
    ),
    "no step": (changed(lambda c: c.pop("step")), "not a checkpoint of stabkit"),
    "step a text": (changed(lambda c: c.update(step="5")), "step is str, should be int"),
    "step below 0": (changed(lambda c: c.update(step=-3)), "step is -3, should be 0 or more"),
    "run a number": (changed(lambda c: c.update(run=5)), "run is int, should be str"),
    "model a list": (changed(lambda c: c.update(model=[1, 2])), "model is list, should be dict"),
    "model of numbers": (
        changed(lambda c: c.update(model={3: torch.ones(2)})),
        "model should hold named, plain tensors only",
    ),
    "a weight on no device": (other_weight(lambda t: t.to("meta")), "should hold named, plain"),
    "a sparse weight": (other_weight(lambda t: t.to_sparse()), "it is damaged, or holds code"),
    "a weight of another shape": (
        other_weight(lambda t: t[:3].clone()),
        "norm.weight [3], should be [16]",
    ),
    "a weight of counts": (
        other_weight(lambda t: t.long()),
        "norm.weight torch.int64, should be torch.float32",
    ),
    "a complex weight": (other_weight(lambda t: t.cfloat()), "torch.complex64, should be"),
    "a missing weight": (
        changed(lambda c: [c["model"].pop(n) for n in list(c["model"]) if "norm.weight" in n]),
        "missing: ",
    ),
}
# what a training alone reads
OF_TRAINING: dict[str, tuple[Callable[[Path], object], str]] = {
    "no optimizer": (changed(lambda c: c.pop("optimizer")), "imported weights"),
    "no bank": (changed(lambda c: c.pop("bank")), "holds no bank"),
    "bank a list": (changed(lambda c: c.update(bank=[1])), "bank is list, should be a dictionary"),
    "bank of one row": (
        changed(lambda c: c["bank"].update(features=c["bank"]["features"][:1].clone())),
        "bank.features is torch.float32 [1, 16], should be torch.float32 [32, 16]",
    ),
    "bank counts a text": (
        changed(lambda c: c["bank"].update(added="9")),
        "bank.added is str, should be a number",
    ),
    "optimizer a list": (changed(lambda c: c.update(optimizer=[])), "optimizer is list"),
    "optimizer without groups": (
        changed(lambda c: c["optimizer"].update(param_groups=[])),
        "optimizer.param_groups is list, should be 1 of them",
    ),
    "optimizer of text": (
        changed(lambda c: c["optimizer"]["param_groups"][0].update(eps="small")),
        "optimizer.param_groups.0.eps is str, should be a number",
    ),
    "a moment of another shape": (
        changed(lambda c: first_moment(c).update(exp_avg=torch.ones(1, 1))),
        "exp_avg is torch.float32 [1, 1], should be torch.float32",
    ),
    "a state of no parameter": (
        changed(lambda c: c["optimizer"]["state"].update({9999: {}})),
        "optimizer.state.9999 belongs to none of",
    ),
    "a stabilizer of another shape": (
        changed(lambda c: c["stabilizer"].update(memory=torch.ones(1))),
        "stabilizer.memory is",
    ),
    "past the end": (changed(lambda c: c.update(step=99)), "step is 99, the run has 12"),
}


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(list(words)) == 1
    _, err = capsys.readouterr()
    assert "Traceback" not in err
    return err


@pytest.mark.lengthy
@pytest.mark.parametrize("damage", DAMAGE)
def test_every_command_refuses_a_damaged_file_and_changes_nothing_else(
    folder: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    act, message = DAMAGE[damage]
    run = RunDir(folder / "run")
    act(run.checkpoint_file)
    before = run.checkpoint_file.read_bytes()
    tables = {p: p.read_bytes() for p in run.path.rglob("*.parquet")}
    for words in (
        ["train", "tiny", *WORDS, "--run-dir", str(run.path)],
        ["evaluate", str(run.path), "--knn"],
        ["export", str(run.path), "-o", str(folder / "out.pt")],
    ):
        err = refused(capsys, *words)
        assert message in err, words
        assert str(run.checkpoint_file) in err
    assert run.checkpoint_file.read_bytes() == before
    assert {p: p.read_bytes() for p in run.path.rglob("*.parquet")} == tables
    assert not (folder / "out.pt").exists()
    assert not run.checkpoint_file.with_name("code was run").exists()


@pytest.mark.parametrize("damage", OF_TRAINING)
def test_training_refuses_a_checkpoint_that_it_cannot_resume(folder: Path, damage: str) -> None:
    act, message = OF_TRAINING[damage]
    file = RunDir(folder / "run").checkpoint_file
    act(file)
    state = build_state(CONFIG, 64, torch.device("cpu"))
    before = {name: t.clone() for name, t in state.model.state_dict().items()}
    with pytest.raises(ValueError, match=r"last\.pt: ") as caught:
        load_state(state, CONFIG, file)
    assert message in str(caught.value)
    assert same(dict(state.model.state_dict()), before), "nothing is filled from it"


@pytest.mark.lengthy
def test_the_remedy_named_for_a_damaged_checkpoint_works(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(folder / "run")
    sound = read_tensors(run.checkpoint_file)
    in_a_tensor(run.checkpoint_file)
    words = ["train", "tiny", *WORDS, "--run-dir", str(run.path)]
    assert "sound copy in its place, or delete it to start the run over" in refused(capsys, *words)
    run.checkpoint_file.unlink()
    assert main(words) == 0
    assert same(read_tensors(run.checkpoint_file), sound)


@pytest.mark.lengthy
@pytest.mark.parametrize(
    "damage", ["a flipped bit", "cut", "empty", "a bomb", "a pickle", "a list"]
)
def test_import_refuses_a_damaged_file_and_makes_no_run(
    folder: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    act, message = DAMAGE[damage]
    file = folder / "weights.pt"
    act(file)
    words = ["import", str(file), "tiny", *WORDS, "--run-dir", str(folder / "new")]
    err = refused(capsys, *words)
    assert message in err
    assert str(file) in err
    assert not (folder / "new").exists()
    assert not (folder / "code was run").exists()


@pytest.mark.parametrize("content", [{1: torch.ones(2)}, {"model": []}, {"state_dict": {"a": 1}}])
def test_import_refuses_a_file_without_named_tensors(
    folder: Path, content: object, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(content, folder / "other.pt")
    words = ["import", str(folder / "other.pt"), "tiny", *WORDS]
    assert "holds no weights" in refused(capsys, *words, "--run-dir", str(folder / "new"))


def test_reading_does_not_wait_for_a_pipe(folder: Path) -> None:
    a_pipe(folder / "weights.pt")
    with pytest.raises(ValueError, match=r"weights\.pt: not a file"):
        read_tensors(folder / "weights.pt")
