"""The notebooks run from top to bottom. `python -m tests.test_notebooks` runs them and keeps what they show."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
named = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def executed(path: Path):
    """The notebook with new outputs. Its kernel imports this lrpfunc, wherever that is."""
    import nbclient
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    found = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    bars = "ignore:IProgress not found"  # tqdm would rather have ipywidgets
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", found)
        patch.setenv("PYTHONWARNINGS", bars)
        return nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()


def cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.dev
@named
def test_a_notebook_runs(path):
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    for cell in cells(executed(path)):
        assert not [output for output in cell.outputs if output.get("name") == "stderr"], cell.source


@pytest.mark.dev
@named
def test_a_notebook_has_its_outputs_and_is_small(path):
    nbformat = pytest.importorskip("nbformat")
    assert path.stat().st_size < 300_000
    notebook = nbformat.read(path, as_version=4)
    assert [cell.execution_count for cell in cells(notebook)] == list(range(1, len(cells(notebook)) + 1))
    assert any(
        "image" in kind for cell in cells(notebook) for output in cell.outputs for kind in output.get("data", {})
    )


def main() -> None:
    import nbformat

    for path in NOTEBOOKS:
        notebook = executed(path)
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # times
        for output in (output for cell in cells(notebook) for output in cell.outputs if "data" in output):
            pictures = [kind for kind in output.data if kind.startswith("image/")]  # PIL gives the same one twice
            for kind in sorted(pictures, key=lambda kind: len(output.data[kind]))[1:]:
                del output.data[kind]
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
