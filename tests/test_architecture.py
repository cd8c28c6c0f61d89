"""The house's rules that a reader cannot be asked to check by eye."""

import re
import subprocess
import sys

import pytest

from tests import house, house_picture
from tests.house import FLOORS, ROOT

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


@pytest.mark.lengthy
@pytest.mark.parametrize("room", FLOORS)
def test_a_room_imports_only_from_floors_below(room: str) -> None:
    for target in house.room_graph()[room]:
        assert FLOORS[target] < FLOORS[room], f"{room} imports {target}"


@pytest.mark.lengthy
@pytest.mark.parametrize("parent", house.INNER_FLOORS)
def test_an_inner_room_imports_only_from_floors_below(parent: str) -> None:
    assert house.upward_imports(parent) == set()


@pytest.mark.parametrize("parent", house.INNER_FLOORS)
def test_every_inner_room_has_a_floor(parent: str) -> None:
    folder = ROOT / parent.replace(".", "/")
    rooms = {path.parent.name for path in folder.glob("*/__init__.py")}
    assert rooms == house.INNER_FLOORS[parent].keys()


@pytest.mark.parametrize("package", ["stabkit", "benchmarks"])
def test_no_module_imports_itself_through_others(package: str) -> None:
    assert house.circles(house.import_graph(package).at_runtime) == []


@pytest.mark.parametrize("package", ["stabkit", "benchmarks"])
def test_no_circle_of_imports_is_hidden_behind_type_checking(package: str) -> None:
    assert house.circles(house.merge(*house.import_graph(package))) == []


def test_a_circle_is_seen_whatever_its_length() -> None:
    chain = {name: frozenset({after}) for name, after in ("ab", "bc", "cd")}
    assert house.circles(chain | {"d": frozenset()}) == []
    assert house.circles(chain | {"d": frozenset("b")}) == [{"b", "c", "d"}]
    assert house.circles({"a": frozenset("b"), "b": frozenset("a")}) == [{"a", "b"}]


def test_no_room_imports_tests_or_benchmarks() -> None:
    for path in (ROOT / "stabkit").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^ *(from|import) (tests|benchmarks|docs)\b", text, re.MULTILINE), (
            path
        )


def test_every_room_has_a_floor() -> None:
    rooms = {
        p.stem
        for p in (ROOT / "stabkit").iterdir()
        if p.suffix == ".py" or (p / "__init__.py").exists()
    }
    assert rooms - {"__init__"} == FLOORS.keys()


def test_the_picture_of_the_house_shows_the_imports_as_they_are() -> None:
    text = house_picture.PAGE.read_text(encoding="utf-8")
    assert house_picture.with_picture(text) == text, "run: python -m tests.house_picture"


def test_the_page_names_code_that_exists() -> None:
    """Every row of a table that begins with a file names something that the file defines."""
    text = house_picture.PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(stabkit/[^`]+\.py)` \| ([^|]+) \|", text, re.MULTILINE)
    assert len(rows) >= 10
    for file, names in rows:
        code = (ROOT / file).read_text(encoding="utf-8")
        for name in re.findall(r"`([A-Za-z_.]+)", names):
            for part in name.split("."):
                assert re.search(rf"\b(def|class) {part}\b", code), f"{file} defines no {part}"


@pytest.mark.processes
def test_what_login_nodes_and_laptops_use_never_imports_torch() -> None:
    code = """
import stabkit.store.reader, stabkit.store.writer, stabkit.detect
import stabkit.sweep.launch, stabkit.sweep.submit, stabkit.sweep.cancel
import stabkit.analyze.plots.catalog, stabkit.analyze.summary
import stabkit.analyze.report.page
import stabkit.convert.convert, stabkit.convert.export, stabkit.convert.words
from stabkit import load, find_dips, find_spikes
from stabkit.cli import main
main(["sweep", "sweeps/lr_grid.yaml", "--dry-run"])
try:
    main(["--help"])
except SystemExit:
    pass
"""
    assert_runs(NO_TORCH + code)


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
