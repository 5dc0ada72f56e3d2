"""The recipe of docs/extending.md for ONNX files, on a file that ONNX itself reads, too."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import igmask
from igmask.asked import config
from igmask.inputs import models

onnx = pytest.importorskip("onnx")
reference = pytest.importorskip("onnx.reference")
pytest.importorskip("onnx2torch")
DOCS = Path(__file__).parents[2] / "docs/extending.md"


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    code = re.search(r"```python\n# of_onnx\.py\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)[1]
    (tmp_path / "of_onnx.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    file = written()
    onnx.save(file, tmp_path / "mine.onnx")
    return file


def written():
    """Return a convolution, a norm, a ReLU, a mean, a linear layer, as an ONNX model."""
    rng = np.random.default_rng(0)
    shapes = {"w": (8, 3, 3, 3), "b": (8,), "scale": (8,), "shift": (8,), "mean": (8,),
              "variance": (8,), "weight": (5, 8), "bias": (5,)}  # fmt: skip
    drawn = {name: rng.uniform(0.1, 1, shape).astype(np.float32) for name, shape in shapes.items()}
    drawn["w"] -= 0.5
    node, named = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2]),
        node("BatchNormalization", ["c", "scale", "shift", "mean", "variance"], ["n"]),
        node("Relu", ["n"], ["r"]),
        node("GlobalAveragePool", ["r"], ["g"]),
        node("Flatten", ["g"], ["f"]),
        node("Gemm", ["f", "weight", "bias"], ["y"], transB=1),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "small",
        [named("x", onnx.TensorProto.FLOAT, ["N", 3, 16, 16])],
        [named("y", onnx.TensorProto.FLOAT, ["N", 5])],
        [onnx.numpy_helper.from_array(value, name) for name, value in drawn.items()],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    return onnx.helper.make_model(graph, opset_imports=opset, ir_version=9)


def test_an_onnx_file_answers_as_onnx_itself_and_is_attributed_as_by_captum(recipe):
    settings = {"source": "of_onnx:network", "arguments": {"path": "mine.onnx"},
                "weights": "none", "size": 16}  # fmt: skip
    network = models.load(config.model(settings))
    x = torch.rand(3, 3, 16, 16)
    (wanted,) = reference.ReferenceEvaluator(recipe).run(None, {"x": x.numpy()})
    torch.testing.assert_close(network(x), torch.from_numpy(wanted), rtol=1e-5, atol=1e-5)

    captum = pytest.importorskip("captum.attr")
    network, x, target = network.double(), x.double(), torch.tensor([0, 2, 4])
    by_captum = captum.IntegratedGradients(network).attribute(
        x, target=target, n_steps=8, method="riemann_right"
    )
    found = igmask.integrated_gradients(network, x, target=target, n_steps=8, of="logit")
    torch.testing.assert_close(found.values, by_captum, rtol=0, atol=1e-14)
