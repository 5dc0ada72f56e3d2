"""What is wrong with a network is said on its first images; what is right is not doubted."""

import dataclasses
import warnings
from collections import OrderedDict

import pytest
import torch
import torchvision.models
from torch import nn
from torch.nn import functional as F

import igmask
from igmask.asked import config
from igmask.engine.captum import IntegratedGradients
from igmask.engine.ready import prepare
from igmask.errors import InputError
from igmask.inputs import contract, models


def classifier(n_classes=5, channels=3):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Conv2d(channels, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        return nn.Sequential(*layers, nn.Linear(8, n_classes)).eval()


class Answering(nn.Module):
    """A classifier whose answer goes through a function."""

    def __init__(self, change, n_classes=5, channels=3):
        super().__init__()
        self.body, self.change = classifier(n_classes, channels), change

    def forward(self, x):
        return self.change(self.body(x))


@dataclasses.dataclass
class Output:
    loss: object
    logits: torch.Tensor


@pytest.fixture
def images():
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def calls(network, images):
    """Every way from Python that asks a classifier for probabilities."""
    return {
        "integrated_gradients": lambda: igmask.integrated_gradients(network, images, n_steps=2),
        "mask_image": lambda: igmask.mask_image(images[0], network, n_steps=2),
        "attribute_loader": lambda folder: igmask.attribute_loader(
            network, [images], folder, n_steps=2
        ),
    }


WRONG = {
    "probabilities already": lambda y: y.softmax(dim=1),
    "one output": lambda y: y[:, :1],
    "the same twice": lambda y: F.dropout(y, 0.5),
    "alone and in a batch": lambda y: (
        (y - y.mean(dim=0)) / (y.var(dim=0, unbiased=False) + 1).sqrt()
    ),
    "tuple with 0: (2, 5), 1: (2, 5)": lambda y: (y, y),
    "list with 0: (2, 5)": lambda y: [y],
    "dict with loss: NoneType, logits: (2, 5)": lambda y: {"loss": None, "logits": y},
    "OrderedDict with logits: (2, 5)": lambda y: OrderedDict(logits=y),
    "Output with loss: float, logits: (2, 5)": lambda y: Output(0.5, y),
    "tensor [N, classes], got str": lambda y: "cat",
    "got (2, 5, 1)": lambda y: y[..., None],
    "floating point, of a class or more, got torch.int64 (2, 5)": lambda y: y.long(),
    "floating point, of a class or more, got torch.float32 (2, 0)": lambda y: y[:, :0],
    "floating point, of a class or more, got torch.complex64 (2, 5)": lambda y: y + 0j,
}


@pytest.mark.parametrize("way", ["integrated_gradients", "mask_image", "attribute_loader"])
@pytest.mark.parametrize("says", WRONG)
def test_a_network_that_is_no_classifier_is_refused(says, way, images, tmp_path):
    call = calls(Answering(WRONG[says]).eval(), images)[way]
    with pytest.raises(InputError) as caught:
        call(tmp_path) if way == "attribute_loader" else call()
    assert says in str(caught.value)


@pytest.mark.parametrize("says", [says for says in WRONG if says != "got (2, 5, 1)"])
def test_a_study_refuses_it_by_name(says):
    model = models.complete(config.model({"source": "somewhere:else", "size": 16}))
    network = models.frozen(Answering(WRONG[says]), model, device="cpu")
    with pytest.raises(InputError, match=r"^somewhere:else: ") as caught:
        models.n_classes(network, model)
    assert says in str(caught.value)


def test_the_entry_to_take_is_named(images):
    network = Answering(lambda y: {"loss": None, "logits": y}).eval()
    with pytest.raises(InputError, match=r"`output: logits`.*output='logits'"):
        igmask.integrated_gradients(network, images)
    with pytest.raises(InputError, match=r"`output: logits`"):
        IntegratedGradients(network).attribute(images, target=0)


@pytest.mark.parametrize("change", [WRONG["probabilities already"], WRONG["one output"]])
def test_outputs_are_attributed_as_they_are_where_that_is_asked(change, images):
    network = Answering(change).eval()
    found = igmask.integrated_gradients(network, images, of="logit", n_steps=300, rule="middle")
    target = network(images).argmax(dim=1)
    exact = IntegratedGradients(network).attribute(images, target=target, n_steps=300)
    torch.testing.assert_close(found.values, exact, rtol=0.05, atol=1e-4)
    assert found.values.abs().max() > 0


def test_logits_that_are_small_and_positive_are_no_probabilities(images):
    """In [0, 1] as those of a fresh network may be, with another sum."""
    network = Answering(lambda y: y.sigmoid() / 2).eval()
    assert igmask.integrated_gradients(network, images, n_steps=2).values.isfinite().all()


@pytest.mark.parametrize(
    ("network", "says"),
    [
        (classifier(channels=1), r"images of shape \(N, 3, 16, 16\).*1 input channel;"),
        (classifier(channels=4), "4 input channels;"),
        (classifier().half(), r"its weights are torch.float16; call model.to\(torch.float32\)"),
        (classifier().double(), r"its weights are torch.float64; call"),
        (Answering(lambda y: y.reshape(7, 9)), "it says\n  RuntimeError: shape"),
    ],
)
def test_images_that_a_network_does_not_take_are_said_in_our_words(network, says, images):
    with pytest.raises(InputError, match=says):
        igmask.integrated_gradients(network.eval(), images)
    with pytest.raises(InputError, match=says):
        IntegratedGradients(network.eval()).attribute(images, target=0)


def test_a_network_of_integers_is_told_apart(images):
    class OfBytes(nn.Module):
        def forward(self, x):
            return F.one_hot(x.long()[:, 0, 0] % 5 if x.dtype == torch.uint8 else x).float()[:, 0]

    behind = nn.Sequential(models.Normalize((0, 0, 0), (1, 1, 1)), OfBytes())
    with pytest.raises(InputError, match=r"takes integers of 0 … 255"):
        contract.ask(behind, images)
    with pytest.raises(InputError, match=r"takes integers of 0 … 255"):
        igmask.integrated_gradients(OfBytes().eval(), images)


@pytest.mark.parametrize(
    "shown",
    [
        lambda x: x,
        lambda x: x[:1],
        lambda x: x[:1].repeat(3, 1, 1, 1),
        lambda x: torch.cat([x[:1], x[:1] + 0.01, x[1:2]]),
        lambda x: torch.zeros_like(x[:1]),
    ],
)
def test_statistics_of_the_batch_are_seen_whatever_the_first_images_are(shown, images):
    """A batch norm without running statistics normalises by its batch even in evaluation."""
    norm = nn.BatchNorm2d(8, track_running_stats=False)
    body = classifier()
    network = nn.Sequential(body[0], norm, *body[1:]).eval()
    with pytest.raises(InputError, match="alone and in a batch"):
        igmask.integrated_gradients(network, shown(images))


def test_a_class_that_is_masked_by_minus_infinity_hides_nothing(images):
    masked = torch.tensor([0.0, 0.0, 0.0, 0.0, -torch.inf])
    torch.manual_seed(0)  # dropout may leave out the same twice
    honest = Answering(lambda y: y + masked).eval()
    igmask.integrated_gradients(honest, images, n_steps=2)
    with pytest.raises(InputError, match="the same twice"):
        igmask.integrated_gradients(
            Answering(lambda y: F.dropout(y, 0.5) + masked).eval(), images, n_steps=2
        )


@pytest.mark.parametrize("as_function", [False, True])
def test_captums_class_warns_and_attributes(as_function, images):
    whole = Answering(WRONG["the same twice"]).eval()
    network = (lambda x: whole(x)) if as_function else whole
    with pytest.warns(UserWarning, match="the same twice") as said:
        found = IntegratedGradients(network).attribute(images, target=0, n_steps=2)
    assert found.shape == images.shape
    assert said[0].filename == __file__


def test_captums_class_asks_networks_of_more_than_one_input(images):
    class Sum(Answering):
        def forward(self, x, other, factor):
            return super().forward(x + other) * factor

    network = Sum(WRONG["the same twice"]).eval()
    with pytest.warns(UserWarning, match="the same twice"):
        IntegratedGradients(network).attribute(
            (images, images / 2), target=0, additional_forward_args=torch.ones(len(images), 1)
        )


def test_captums_class_says_what_a_function_does_not_take(images):
    one_channel = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(InputError, match="does not take images of shape"):
        IntegratedGradients(lambda x: one_channel(x)).attribute(images, target=0)


HONEST = ("resnet18", "mobilenet_v3_small", "efficientnet_b0", "shufflenet_v2_x0_5", "swin_t")
HONEST += (
    "squeezenet1_1",
    "densenet121",
    "googlenet",
    pytest.param("vit_b_32", marks=pytest.mark.slow),
    "regnet_y_400mf",
    "convnext_tiny",
)


@pytest.mark.parametrize("name", HONEST)
def test_rounding_in_other_batch_sizes_is_no_fault(name):
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(0)
        network = torchvision.models.get_model(name, weights=None).eval()
        size = 224 if name.startswith("vit") else 96
        images = torch.rand(2, 3, size, size)
    for given in (network, network.to(memory_format=torch.channels_last)):
        assert contract.ask(given, images).fault == ""
    assert contract.ask(network.bfloat16(), images.bfloat16()).fault == ""


def test_rounding_of_16_bits_behind_an_answer_in_32_is_no_fault(images):
    """Seen of Swin-T under a bfloat16 autocast of its own: 0.4 % of the largest logit."""

    def rounded(y):
        return y * (1 + 2**-8) if len(y) > 1 else y  # by one place of bfloat16

    assert contract.ask(Answering(rounded).eval(), images).fault == ""


@pytest.mark.parametrize("with_stem", [True, False])
def test_a_model_is_asked_once(with_stem, images, monkeypatch):
    asked, ask = [], contract.ask
    monkeypatch.setattr(contract, "ask", lambda *given: asked.append(given) or ask(*given))
    network = classifier() if with_stem else Answering(lambda y: y * 1 if len(y) else y)
    network.eval()
    for _ in range(3):
        igmask.integrated_gradients(network, images, n_steps=4)
    assert len(asked) == 1


class Holding(nn.Module):
    """A module that keeps its network out of PyTorch's sight."""

    def __init__(self, network):
        super().__init__()
        self.held = [network]

    def forward(self, x):
        return self.held[0](x)


@pytest.mark.parametrize("hide", [lambda network: lambda x: network(x), Holding])
def test_what_was_mended_out_of_sight_is_believed(hide, images):
    network = nn.Sequential(classifier(), nn.Dropout(0.5)).train()
    asking = hide(network)
    if isinstance(asking, nn.Module):
        asking.eval()
    with pytest.raises(InputError, match=r"the same twice"):
        igmask.integrated_gradients(asking, images, n_steps=2)
    network.eval()
    igmask.integrated_gradients(asking, images, n_steps=2)


def test_a_function_whose_network_goes_back_to_training_is_seen(images):
    network = nn.Sequential(classifier(), nn.Dropout(0.5)).eval()

    def function(x):
        return network(x)

    igmask.integrated_gradients(function, images, n_steps=2)
    network.train()
    with pytest.raises(InputError, match=r"the same twice"):
        igmask.integrated_gradients(function, images, n_steps=2)


def test_the_answer_of_another_model_is_asked_for_anew(images):
    network = Answering(lambda y: y).eval()
    igmask.integrated_gradients(network, images, n_steps=2)
    network.change = WRONG["probabilities already"]
    with pytest.raises(InputError, match="probabilities already"):
        igmask.integrated_gradients(network, images, n_steps=2)


# -- judged by what they do ------------------------------------------------------------------------


def exported(network, images):
    n = torch.export.Dim("n")
    return torch.export.export(network, (images,), dynamic_shapes=({0: n},)).module()


def frozen_script(network, images):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is of the past
        return torch.jit.freeze(torch.jit.script(network))


def data_parallel(network, images):
    return nn.DataParallel(network)


def beside_a_layer(network, images):
    return nn.Sequential(nn.Identity(), network)


def exported_beside_a_layer(network, images):
    return beside_a_layer(exported(network, images), images)  # of which eval() raises, too


WRAPS = [exported, frozen_script, data_parallel, beside_a_layer, exported_beside_a_layer]


@pytest.mark.parametrize("wrap", WRAPS)
def test_wrapped_networks_are_attributed_as_what_is_in_them(wrap, images, tmp_path):
    plain = classifier()
    network = wrap(plain, images)
    expected = igmask.integrated_gradients(plain, images, n_steps=4)
    found = igmask.integrated_gradients(network, images, n_steps=4)
    torch.testing.assert_close(found.values, expected.values, rtol=1e-4, atol=1e-7)
    masked = [igmask.mask_image(images[0], model, n_steps=4) for model in (plain, network)]
    assert masked[0].equal(masked[1])
    ours = [IntegratedGradients(m).attribute(images, target=1, n_steps=4) for m in (plain, network)]
    torch.testing.assert_close(*ours, rtol=1e-4, atol=1e-7)
    assert len(igmask.attribute_loader(network, [images], tmp_path, n_steps=2)) == 1

    model = models.complete(config.model({"source": "some:where", "size": 16}))
    ready = models.frozen(network, model, device="cpu")
    assert models.n_classes(ready, model) == 5
    again = igmask.integrated_gradients(ready, images, n_steps=4)
    torch.testing.assert_close(again.values, expected.values, rtol=1e-4, atol=1e-7)


def test_what_was_exported_in_training_mode_is_seen_by_its_answers(images):
    network = nn.Sequential(classifier(), nn.Dropout(0.5)).train()
    with pytest.raises(InputError, match=r"the same twice"):
        igmask.integrated_gradients(exported(network, images), images)


def test_a_fixed_batch_size_is_named(images):
    network = torch.export.export(classifier(), (images,)).module()
    with pytest.raises(InputError, match=r"takes batches of 3 and not of 2.*dynamic first axis"):
        igmask.integrated_gradients(network, images)
    network = torch.export.export(classifier(), (images[:1],)).module()
    with pytest.raises(InputError, match=r"takes batches of 1 and not of 2.*dynamic first axis"):
        igmask.integrated_gradients(network, images)


@pytest.mark.parametrize("wrap", [data_parallel, beside_a_layer])
def test_a_wrapper_around_a_network_in_training_mode_is_refused(wrap, images):
    with pytest.raises(InputError, match=r"training mode; call model.eval\(\) first"):
        igmask.integrated_gradients(wrap(classifier().train(), images), images)


def test_a_network_that_keeps_something_for_its_next_call_is_as_it_was(images):
    class Keeping(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.kept = classifier(), None

        def forward(self, x):
            y = self.body(x)
            if self.kept is None:
                self.kept = self.body[-1].bias * 2
            return y + self.kept

    network = Keeping().eval()
    found = igmask.integrated_gradients(network, images, n_steps=4)
    assert isinstance(network.kept, torch.Tensor)
    expected = igmask.integrated_gradients(lambda x: network(x), images, n_steps=4)
    torch.testing.assert_close(found.values, expected.values, rtol=1e-4, atol=1e-7)


def test_a_layer_whose_weights_are_read_beside_it_is_left_whole(images):
    class Reading(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = classifier()

        def forward(self, x):
            return self.body(x.to(self.body[0].weight.dtype))

    network = Reading().eval()
    found = igmask.integrated_gradients(network, images, n_steps=4)
    expected = igmask.integrated_gradients(network.body, images, n_steps=4)
    torch.testing.assert_close(found.values, expected.values, rtol=1e-4, atol=1e-7)
    assert prepare(network, images).answer.fault == ""


class Averaging(nn.Module):
    """A classifier that averages in windows."""

    def __init__(self, padding, functional=False):
        super().__init__()
        self.body, self.pool = classifier(channels=8), nn.AvgPool2d(3, 1, padding)
        self.first, self.padding, self.functional = nn.Conv2d(3, 8, 3), padding, functional

    def forward(self, x):
        x = self.first(x).relu()
        x = F.avg_pool2d(x, 3, 1, self.padding) if self.functional else self.pool(x)
        return self.body(x)


@pytest.mark.parametrize("functional", [False, True])
def test_gradients_that_pytorch_has_wrong_are_refused(functional, images, monkeypatch):
    """Of padded averages in channels-last on a GPU: see `averages_rightly`."""
    assert contract.averages_rightly(torch.device("cpu"))
    last = Averaging(1, functional).eval().to(memory_format=torch.channels_last)
    expected = igmask.integrated_gradients(last, images, n_steps=2)
    monkeypatch.setattr(contract, "averages_rightly", lambda _: False)
    last = Averaging(1, functional).eval().to(memory_format=torch.channels_last)
    message = r"wrong gradients of padded average pooling .*contiguous_format"
    for network in (last, lambda x: last(x)):
        with pytest.raises(InputError, match=message):
            igmask.integrated_gradients(network, images, n_steps=2)
    for right in (last.to(memory_format=torch.contiguous_format), Averaging(0, functional).eval()):
        found = igmask.integrated_gradients(right, images, n_steps=2)
        assert found.values.shape == expected.values.shape
    padding_only = Averaging(0, functional).eval().to(memory_format=torch.channels_last)
    igmask.integrated_gradients(padding_only, images, n_steps=2)


@pytest.mark.parametrize("rightly", [True, False])
def test_a_studys_network_is_laid_out_as_gradients_are_right(rightly, monkeypatch):
    monkeypatch.setattr(contract, "averages_rightly", lambda _: rightly)
    model = config.model({"source": "resnet18", "size": 64, "weights": "none"})
    first = next(part for part in models.load(model).modules() if isinstance(part, nn.Conv2d))
    assert first.weight.is_contiguous(memory_format=torch.channels_last) == rightly
