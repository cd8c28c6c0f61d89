"""The analyses as what they are to a reader: notebooks that Jupyter opens and runs."""

from base64 import b64decode
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

from stabkit.sweep.grid import load_sweep
from tests.studies.test_studies import plant

ANALYSES = sorted(Path("analysis").glob("*.py"))


@pytest.mark.parametrize("path", ANALYSES, ids=lambda p: p.stem)
def test_jupytext_opens_it_and_writes_back_the_same(path: Path) -> None:
    notebook = jupytext.read(path)
    nbformat.validate(notebook)
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds[0] == "markdown"
    assert "code" in kinds
    (parameters,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    assert parameters.source == f'RUNS = "runs/{path.stem}"'
    again = jupytext.reads(jupytext.writes(notebook, "py:percent"), "py:percent")
    assert [c.source for c in again.cells] == [c.source for c in notebook.cells]


def test_one_runs_as_a_notebook_in_its_own_folder(tmp_path: Path) -> None:
    """The parameter is replaced where it is set, as papermill and a reader do it.

    Jupyter runs a notebook in the notebook's folder. Figures are shown below their cells.
    """
    for number, planned in enumerate(load_sweep(Path("sweeps/lr_grid.yaml")).runs):
        plant(planned, tmp_path / planned.folder, 0.3 + 0.01 * number)
    notebook = jupytext.read("analysis/lr_grid.py")
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = f"RUNS = {str(tmp_path)!r}"
    here = {"metadata": {"path": str(Path("analysis").resolve())}}
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources=here).execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    printed = "".join(out["text"] for out in outputs if out.get("name") == "stdout")
    assert "a frozen patch projection ends higher" in printed
    assert str(tmp_path / "figures" / "levels.png") in printed
    assert (tmp_path / "figures" / "levels.png").read_bytes().startswith(b"\x89PNG")
    assert not [out for out in outputs if out.get("name") == "stderr"]
    shown = [out["data"]["image/png"] for out in outputs if "image/png" in out.get("data", {})]
    assert len(shown) == 2
    assert all(b64decode(png).startswith(b"\x89PNG") for png in shown)
