"""The notebook for own photographs runs from start to end, with the demo's models."""

import os

import nbformat
import pytest
from nbclient import NotebookClient
from support import warm
from support.tiny import ROOT

NOTEBOOK = ROOT / "examples" / "own_photographs.ipynb"
MINUTES = 20


@pytest.mark.slow
def test_the_notebook_runs_from_start_to_end(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv(
        "PATH", f"{warm.interpreter().parent}{os.pathsep}{os.environ['PATH']}"
    )
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=60 * MINUTES, resources=resources).execute()
    printed = "".join(
        output.get("text", "")
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )
    assert "LabelModel: " in printed
    assert "of 170 pictures without an answer" in printed
    pictures = [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 3
    written = {path.name for path in (tmp_path / "my-clip").iterdir()}
    assert {"open_clip_model.safetensors", "open_clip_config.json"} <= written
    assert (tmp_path / "results" / "mine" / "recommended" / "seed0" / "model").is_dir()
