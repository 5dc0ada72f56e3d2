"""Networks of the Hugging Face hub by name, from a cache that tests fill: nothing is fetched."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file

import igmask
from igmask import cli
from igmask.asked import config
from igmask.asked.settings import Geometry
from igmask.errors import InputError
from igmask.inputs import models
from igmask.inputs.decode import fit
from igmask.inputs.networks import library_of

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 16, "image_size": 32, "patch_size": 8}  # fmt: skip
NAMES = {"id2label": {0: "cat", 1: "dog", 2: "egg"}}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Put networks into the hub's cache: name, network, processor or None → their folder."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))

    def put(name, network, processor):
        place = tmp_path / f"models--{name.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs/main").write_text("0" * 40)
        network.save_pretrained(place / "snapshots" / ("0" * 40))
        if processor is not None:
            processor.save_pretrained(place / "snapshots" / ("0" * 40))
        return place / "snapshots" / ("0" * 40)

    return put


def small(**changes):
    torch.manual_seed(0)
    made = transformers.ViTConfig(**SMALL | NAMES | changes)
    return transformers.ViTForImageClassification(made).eval()


def described(name, **settings):
    return models.complete(config.model({"source": f"hf/{name}", "weights": "none", **settings}))


def photograph(width, height):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


SQUASHED = {"size": {"height": 32, "width": 32}}
PROCESSORS = {
    "ViTImageProcessor": SQUASHED,
    "ConvNextImageProcessor": {"size": {"shortest_edge": 32}, "crop_pct": 0.875},
    "BitImageProcessor": {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}},
    "LevitImageProcessor": {
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 32, "width": 32},
    },
    "CLIPImageProcessor": {"size": {"shortest_edge": 32}, "crop_size": 32},
    "EfficientNetImageProcessor": SQUASHED,
    "PoolFormerImageProcessor": {
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 32, "width": 32},
        "crop_pct": 0.9,
    },
    "PvtImageProcessor": SQUASHED,
    "DeiTImageProcessor": {"size": {"height": 40, "width": 40}, "crop_size": 32},
    "SiglipImageProcessor": SQUASHED | {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.2] * 3},
}


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("shape", [(192, 128), (96, 144), (64, 64)])
def test_images_come_as_the_processor_makes_them(name, shape, hub):
    processor = getattr(transformers, name)(**PROCESSORS[name])
    hub("a/b", small(), processor)
    model, image = described("a/b"), photograph(*shape)
    theirs = processor(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    theirs, ours = 255 * (theirs * model.std + model.mean), fit(image, model.geometry)
    cut = [(ours[: 32 - y, : 32 - x], theirs[y:, x:]) for y in (0, 1) for x in (0, 1)]
    # They round elsewhere, and some cut an odd margin a pixel before ours.
    assert min(np.abs(one - other).mean() for one, other in cut) < 2.5


def test_the_network_is_that_of_transformers(hub):
    theirs = small()
    hub("a/b", theirs, transformers.ViTImageProcessor(**SQUASHED))
    network = igmask.load_model("hf/a/b")
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(x), theirs((x - 0.5) / 0.5).logits)
    model = config.model({"source": "hf/a/b"})
    assert library_of(model).class_names(model) == ["cat", "dog", "egg"]
    assert library_of(model).usual_size(model) == 32


def test_integrated_gradients_are_captums(hub):
    captum = pytest.importorskip("captum.attr")
    hub("a/b", small(), transformers.ViTImageProcessor(**SQUASHED))
    network = igmask.load_model("hf/a/b").double()
    x, target = torch.rand(3, 3, 32, 32, dtype=torch.float64), torch.tensor([0, 2, 1])
    wanted = captum.IntegratedGradients(network).attribute(
        x, target=target, n_steps=8, method="riemann_right"
    )
    found = igmask.integrated_gradients(network, x, target=target, n_steps=8, of="logit")
    torch.testing.assert_close(found.values, wanted, rtol=0, atol=1e-13)


def test_inspect_needs_no_weights(hub):
    place = hub("a/b", small(), transformers.ViTImageProcessor(**SQUASHED))
    (place / "model.safetensors").unlink()
    result = CliRunner().invoke(cli.app, ["inspect", "hf/a/b", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "hf/a/b, input 3 × 32 × 32" in result.output
    assert "network.vit.embeddings" in result.output


def test_weights_may_be_a_files(hub, tmp_path):
    hub("a/b", small(), transformers.ViTImageProcessor(**SQUASHED))
    torch.manual_seed(7)
    other = transformers.ViTForImageClassification(small().config).eval()
    save_file(other.state_dict(), tmp_path / "w.safetensors")
    network = igmask.load_model("hf/a/b", weights=str(tmp_path / "w.safetensors"))
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(x), other((x - 0.5) / 0.5).logits)


def test_what_is_said_goes_before_the_description(hub):
    hub("a/b", small(), transformers.ConvNextImageProcessor(size={"shortest_edge": 32}))
    assert (described("a/b").resize, described("a/b").squash) == (36, False)
    model = described("a/b", size=64, std=[0.5, 0.5, 0.5])
    assert (model.size, model.resize, model.std) == (64, 72, (0.5, 0.5, 0.5))


@pytest.mark.parametrize("name", PROCESSORS)
def test_size_mean_and_std_alone_leave_the_rest_to_the_processor(name, hub):
    hub("a/b", small(), getattr(transformers, name)(**PROCESSORS[name]))
    whole = described("a/b")
    said = {"size": 32, "mean": [0.1, 0.2, 0.3], "std": [0.3, 0.2, 0.1]}
    assert described("a/b", **said).geometry == whole.geometry
    assert described("a/b", **said).mean == (0.1, 0.2, 0.3)


def test_where_all_is_said_no_processor_is_needed(hub):
    place = hub("a/b", small(), transformers.ViTImageProcessor(**SQUASHED))
    (place / "preprocessor_config.json").unlink()
    said = {"size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    with pytest.raises(
        InputError, match=r"hf/a/b: .*or set the model's size, resize, interpolation"
    ):
        described("a/b", **said)
    said |= {"resize": 40, "interpolation": "bicubic"}
    assert described("a/b", **said).geometry == Geometry(32, 40, "bicubic")
    assert igmask.load_model("hf/a/b", **said)(torch.rand(1, 3, 32, 32)).shape == (1, 3)


@pytest.mark.parametrize(("crop", "mode"), [(0.875, "center"), (0.95, "center"), (0.9, "squash")])
def test_networks_of_timm_on_the_hub_are_as_timm_has_them(hub, crop, mode):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.create_model("resnet10t", num_classes=3).eval()
    described_by_timm = {"input_size": [3, 64, 64], "crop_pct": crop, "crop_mode": mode,
                         "interpolation": "bicubic", "mean": [0.5, 0.4, 0.3], "std": [0.3] * 3,
                         "fixed_input_size": False}  # fmt: skip
    made = transformers.TimmWrapperConfig(
        architecture="resnet10t", num_labels=3, pretrained_cfg=described_by_timm
    )
    network = transformers.TimmWrapperForImageClassification(made)
    network.timm_model.load_state_dict(theirs.state_dict())
    hub("timm/resnet10t.mine", network, None)
    model, image = described("timm/resnet10t.mine"), photograph(192, 128)
    transform = timm.data.create_transform(
        **timm.data.resolve_data_config(pretrained_cfg=described_by_timm)
    )
    pixels = torch.from_numpy(fit(image, model.geometry).copy())[None]
    x = models.pixels(pixels)
    found = models.load(config.model({"source": "hf/timm/resnet10t.mine"}))
    torch.testing.assert_close(found[0](x)[0], transform(image), rtol=0, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(found(x), theirs(transform(image)[None]), rtol=1e-3, atol=1e-6)


WITHOUT_SQUARE = {
    "no crop": ("CLIP", {"size": {"shortest_edge": 32}, "do_center_crop": False}, "32, 48"),
    "no resize": ("ViT", SQUASHED | {"do_resize": False}, "320, 480"),
    "of detectors": ("Detr", {"size": {"shortest_edge": 32, "longest_edge": 64}}, "32, 48"),
    "other sides": ("ViT", {"size": {"height": 40, "width": 48}}, "40, 48"),
}


@pytest.mark.parametrize("kind", WITHOUT_SQUARE)
def test_an_input_that_is_not_always_square_is_refused(kind, hub):
    name, settings, shape = WITHOUT_SQUARE[kind]
    hub("a/b", small(), getattr(transformers, f"{name}ImageProcessor")(**settings))
    said = (
        rf"hf/a/b: of a wide image its processor makes \(3, {shape}\), no square.*set the model's"
    )
    with pytest.raises(InputError, match=said):
        described("a/b")


class Changing:
    """A processor that says nothing of itself, and answers as a function says."""

    def __init__(self, answer):
        self.answer = answer

    def to_dict(self):
        return {"size": 32, "crop_pct": None}

    def __call__(self, image, return_tensors):
        made = self.answer(np.asarray(image, dtype=np.float32))
        return {"pixel_values": [torch.from_numpy(np.ascontiguousarray(made.transpose(2, 0, 1)))]}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda image: image[:320, :320] if image.shape[1] < 600 else image, "cuts images in a"),
        (lambda image: 0 * image[:32, :32], "changes colours by more than mean and std"),
        (lambda image: 255 - image[:32, :32], "changes colours by more than mean and std"),
    ],
    ids=["square of some", "black", "negative"],
)
def test_other_processors_are_refused_in_words(answer, said, hub, monkeypatch):
    hub("a/b", small(), transformers.ViTImageProcessor(**SQUASHED))
    processor = transformers.AutoImageProcessor
    monkeypatch.setattr(processor, "from_pretrained", lambda *_, **__: Changing(answer))
    with pytest.raises(InputError, match=said):
        described("a/b")


@pytest.mark.parametrize("settings", [{"resample": 4}, {"resample": 5}], ids=str)
def test_what_a_processor_raises_names_the_network(settings, hub, monkeypatch):
    hub("a/b", small(), transformers.ViTImageProcessor(**SQUASHED | settings))
    with pytest.raises(InputError, match=r"hf/a/b: NotImplementedError.*; set the model's size"):
        described("a/b")
    hub("a/c", small(), transformers.ViTImageProcessor(**SQUASHED))
    processor = transformers.ViTImageProcessor
    monkeypatch.setattr(processor, "__call__", lambda *_, **__: {"patches": []})
    with pytest.raises(InputError, match="hf/a/c: KeyError: 'pixel_values'; set the model's size"):
        described("a/c")


def test_a_half_of_a_network_is_loaded_whole(hub):
    hub("a/b", small().half(), transformers.ViTImageProcessor(**SQUASHED))
    assert {p.dtype for p in igmask.load_model("hf/a/b").parameters()} == {torch.float32}


def test_a_network_without_a_classifier_is_refused(hub):
    place = hub("a/b", small().vit, transformers.ViTImageProcessor(**SQUASHED))
    assert "ViTModel" in (place / "config.json").read_text()
    with pytest.raises(InputError, match=r"hf/a/b: its weights lack classifier\.bias.*random"):
        igmask.load_model("hf/a/b")


@pytest.mark.parametrize("name", ["MobileViTImageProcessor", "PPLCNetImageProcessor"])
def test_colours_in_another_order_are_refused(name, hub):
    size = {"shortest_edge": 32} if "Mobile" in name else {"height": 32, "width": 32}
    hub("a/b", small(), getattr(transformers, name)(size=size, crop_size=32))
    with pytest.raises(InputError, match="changes colours by more than mean and std"):
        described("a/b")


def test_numbered_classes_have_no_names(hub):
    unnamed = {str(i): f"LABEL_{i}" for i in range(3)}
    place = hub("a/b", small(), transformers.ViTImageProcessor(**SQUASHED))
    said = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(said | {"id2label": unnamed}))
    model = config.model({"source": "hf/a/b"})
    assert library_of(model).class_names(model) == []


def test_a_network_that_is_not_there_is_named(hub):
    with pytest.raises(InputError, match="hf/no/such: "):
        described("no/such")


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(InputError, match=r"pip install 'igmask\[transformers\]'"):
        described("a/b")
