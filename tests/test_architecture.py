"""The house's rules that a reader cannot be asked to check by eye."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYER = {
    "printing": -1, "yamlio": -1, "presets": -1, "code_state": 0, "config": 0, "rundir": 0,
    "store": 1, "detect": 1,
    "monitor": 2, "integrations": 3, "train": 3, "analyze": 3, "convert": 3,
    "evaluate": 4, "sweep": 4, "cli": 5,
    "__main__": 6,
}  # fmt: skip


def imports(path: Path) -> set[str]:
    """Rooms of stabkit a module imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names = [node.module]
        found |= {name.split(".")[1] for name in names if name.startswith("stabkit.")}
        found |= {"tests"} & {name.split(".")[0] for name in names}
    return found


NO_TORCH = """
import sys
class NoTorch:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("torch", "torchvision", "timm"):
            raise ImportError(f"{name} must not be imported here")
sys.meta_path.insert(0, NoTorch())
"""
NO_FRAMEWORK = NO_TORCH.replace(
    '("torch", "torchvision", "timm")',
    '("lightning", "pytorch_lightning", "transformers", "accelerate", "lightly")',
)


@pytest.mark.parametrize("room", LAYER)
def test_imports_go_down_only(room: str) -> None:
    package = ROOT / "stabkit"
    paths = (
        [package / f"{room}.py"]
        if (package / f"{room}.py").exists()
        else (package / room).rglob("*.py")
    )
    for path in paths:
        for target in imports(path) - {room}:
            assert LAYER[target] < LAYER[room], f"{path.relative_to(ROOT)} imports {target}"


def test_every_module_has_a_layer() -> None:
    rooms = {
        p.stem
        for p in (ROOT / "stabkit").iterdir()
        if p.suffix == ".py" or (p / "__init__.py").exists()
    }
    assert rooms - {"__init__"} == LAYER.keys()


@pytest.mark.parametrize(
    "code",
    [
        "import stabkit.store.reader, stabkit.store.writer, stabkit.detect",
        "import stabkit.sweep.launch, stabkit.sweep.submit, stabkit.sweep.cancel",
        "import stabkit.analyze.plots.catalog, stabkit.analyze.summary",
        "import stabkit.analyze.report.page",
        "import stabkit.convert.convert, stabkit.convert.export, stabkit.convert.words",
        "from stabkit import load, find_dips, find_spikes",
        "from stabkit.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass",
        "from stabkit.cli import main\nmain(['sweep', 'sweeps/lr_grid.yaml', '--dry-run'])",
    ],
)
def test_what_login_nodes_and_laptops_use_never_imports_torch(code: str) -> None:
    assert_runs(NO_TORCH + code)


def test_the_monitor_needs_no_framework() -> None:
    code = "import stabkit.monitor.monitor, stabkit.integrations, stabkit.train.loop"
    assert_runs(NO_FRAMEWORK + code)


def assert_runs(code: str) -> None:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_the_instrument_never_imports_a_study() -> None:
    for path in (ROOT / "stabkit").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "import analysis" not in text, path
        assert "from analysis" not in text, path


def test_every_study_is_a_pair() -> None:
    asked = {p.stem for p in (ROOT / "sweeps").glob("*.yaml")}
    answered = {p.stem for p in (ROOT / "analysis").glob("*.py")}
    assert asked == answered


def test_a_first_step_waits_for_no_import_it_can_do_without() -> None:
    code = """
import sys, tempfile
from pathlib import Path
from stabkit.config import load_config
from stabkit.rundir import RunDir
from stabkit.train.loop import train
small = ["train.steps=1", "train.batch=4", "data.num_train=8", "data.num_heldout=8"]
with tempfile.TemporaryDirectory() as folder:
    train(load_config("tiny", small), RunDir(Path(folder) / "run"))
slow = {"timm", "torchvision", "scipy", "matplotlib"} & set(sys.modules)
assert not slow, slow
"""
    assert_runs(code)
