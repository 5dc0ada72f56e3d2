"""A network made ready: made anew when it changes, refused when it cannot work, run in batches."""

import contextlib
import copy
import gc
import shutil
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import psutil
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import StochasticDepth

import igmask
from igmask.engine import network as network_module
from igmask.engine import ready
from igmask.engine.ig import NotFinite, integrated_gradients
from igmask.engine.network import Network, input_gradients
from igmask.engine.ready import prepare
from igmask.errors import InputError


def classifier(*begin, dtype=torch.float64, seed=0):
    """Five classes from (N, 3, 9, 9), with a stem that folds."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
        head = (nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5))
        return nn.Sequential(*begin, *layers, *head).to(dtype).eval()


class Whole(nn.Module):
    """Cannot be traced, and runs out of memory with more than `most` points at a time."""

    def __init__(self, network, most=1000):
        super().__init__()
        self.network, self.most, self.sizes = network, most, []
        self.eval()

    def forward(self, x):
        self.sizes.append(len(x))
        if len(x) > self.most:
            raise torch.OutOfMemoryError("too large for this network")
        return self.network(x)


@pytest.fixture
def images():
    return torch.rand(3, 3, 9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# -- made once, and anew -----------------------------------------------------------------------


def test_a_network_is_made_ready_once_for_each_kind_of_images(images):
    model = classifier()
    network = prepare(model, images)
    assert prepare(model, images[:1]) is network
    assert prepare(model, images, precision="fp32") is not network
    assert prepare(model, images[..., :7]) is not network
    assert prepare(copy.deepcopy(model), images) is not network


def test_a_model_that_makes_constants_is_made_ready_once(images):
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = classifier()

        def forward(self, x):
            return self.network(x - torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1))

    model = Constant().eval()
    assert prepare(model, images) is prepare(model, images)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.network, self.scale = classifier(), 1.0
        self.options = {"power": 1}

    def forward(self, x):
        return (self.network(x) * self.scale) ** self.options["power"]


def change_in_place(model):
    with torch.no_grad():
        model.network[0].weight.mul_(2)


def change_data_in_place(model):
    model.network[0].weight.data.mul_(2)


def change_data(model):
    for _ in range(3):  # the allocator may hand out the first address again
        model.network[0].weight.data = model.network[0].weight.data * 2


def permute_data(model):
    weight = model.network[0].weight
    weight.data.copy_(weight.data.flip(0))


def load(model):
    model.load_state_dict({k: v * 2 for k, v in model.state_dict().items() if v.ndim}, strict=False)


def change_statistics(model):
    model.network[1].running_var *= 3


def replace_layer(model):
    model.network[0] = copy.deepcopy(model.network[0])
    nn.init.ones_(model.network[0].weight)


def replace_activation(model):
    model.network[2] = nn.Tanh()


def add_hook(model):
    model.network[1].register_forward_hook(lambda module, inputs, output: output * 2)


def add_backward_hook(model):
    model.network[2].register_full_backward_hook(lambda module, before, after: (before[0] * 2,))


def change_attribute(model):
    model.scale = 3.0


def change_option(model):
    model.options["power"] = 2


def parametrise(model):
    nn.utils.parametrizations.weight_norm(model.network[0])
    model.network[0].parametrizations.weight.original0.data.mul_(2)


CHANGES = (
    change_in_place, change_data_in_place, change_data, permute_data, load, change_statistics,
    replace_layer, replace_activation, add_hook, add_backward_hook, change_attribute,
    change_option, parametrise,
)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_changed_model_is_noticed(images, change, dtype):
    model, images = Scaled().to(dtype).eval(), images.to(dtype)
    arguments = {"target": torch.tensor([0, 1, 2]), "of": "logit", "n_steps": 4}
    before = integrated_gradients(model, images, **arguments)
    change(model)
    found = integrated_gradients(model, images, **arguments).values
    # Hooked as it is, a function has no stem and is made ready every time.
    expected = integrated_gradients(lambda x: model(x), images, **arguments).values
    assert not torch.allclose(found, before.values)
    assert (found - expected).norm() < 1e-5 * expected.norm()


def test_layers_of_the_same_shape_are_told_apart(images):
    model = classifier()
    for _ in range(4):  # objects come and go at the same addresses
        for kind in (nn.Sigmoid, nn.Tanh, nn.SiLU, nn.Mish):
            model[2] = kind()
            found = integrated_gradients(model, images, n_steps=1).values
            assert found.equal(integrated_gradients(copy.deepcopy(model), images, n_steps=1).values)


@pytest.mark.parametrize("make", [classifier, lambda: Whole(classifier())])
def test_a_model_made_ready_can_be_freed(images, make):
    model = make()
    integrated_gradients(model, images, n_steps=2)
    left = weakref.ref(model)
    del model
    gc.collect()
    assert left() is None


# -- refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(3), nn.Dropout(0.1), nn.RReLU()])
def test_a_layer_in_training_mode_is_named(images, layer):
    model = classifier(nn.Identity(), layer)
    model[1].train()
    name = rf"training mode: 1 \({type(layer).__name__}\); call model.eval\(\)"
    with pytest.raises(InputError, match=name):
        integrated_gradients(model, images)
    with pytest.raises(InputError, match=name):
        igmask.IntegratedGradients(model).attribute(images, target=0)


def test_many_layers_in_training_mode_are_not_all_named(images):
    model = nn.Sequential(*[nn.BatchNorm2d(3) for _ in range(5)]).double()
    with pytest.raises(InputError, match=r"2 \(BatchNorm2d\) and others"):
        prepare(model, images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "fp8"}, "unknown precision 'fp8'; choose from fp32"),
        ({"engine": "jit"}, "unknown engine 'jit'; choose from eager"),
        ({"precision": "tf32"}, "tf32 needs a GPU"),
        ({"engine": "cudagraph"}, "cudagraph needs a GPU"),
    ],
)
def test_what_cannot_be_had_is_refused(images, arguments, message):
    with pytest.raises(InputError, match=message):
        prepare(classifier(), images, **arguments)
    with pytest.raises(InputError, match=message):
        integrated_gradients(classifier(), images, **arguments)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_function_has_no_half_precision(images, precision):
    with pytest.raises(InputError, match="not a function"):
        prepare(lambda x: x, images, precision=precision)


def test_a_network_is_judged_in_ieee_single_precision_and_not_as_pytorch_is_set(
    images, monkeypatch
):
    """By TF32 the gradients of a ResNet-50 and of its parts differ by more than rounding."""
    under_way, seen = [], []

    @contextlib.contextmanager
    def multiplying_in(precision):
        under_way.append(precision)
        yield
        under_way.pop()

    monkeypatch.setattr(ready, "multiplying_in", multiplying_in)
    for module, name in ((network_module.stem, "split"), (ready.contract, "ask")):
        work = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *a, w=work, **o: seen.append(under_way[-1]) or w(*a, **o)
        )
    prepare(classifier(), images)
    assert seen == ["fp32", "fp32"]


@pytest.mark.parametrize(
    ("kind", "precision", "layout"),
    [
        ("cpu", "fp32", torch.channels_last),
        ("cpu", "bf16", torch.channels_last),
        ("cuda", None, None),
        ("cuda", "fp32", torch.contiguous_format),
        ("cuda", "tf32", torch.channels_last),
        ("cuda", "fp16", torch.channels_last),
    ],
)
def test_channels_lie_as_the_device_multiplies_fastest(kind, precision, layout):
    example = SimpleNamespace(device=torch.device(kind), dtype=torch.float32)
    assert network_module._layout(example, precision) == layout
    example.dtype = torch.float64
    assert network_module._layout(example, precision) is None


def test_a_network_that_was_made_ready_is_taken_as_it_is(images):
    model = classifier()
    ready = prepare(model, images, precision="fp32")
    expected = integrated_gradients(model, images, n_steps=3)
    assert integrated_gradients(ready, images, n_steps=3).values.equal(expected.values)
    others = [(images, {"precision": "bf16"}), (images, {"engine": "compile"})]
    others += [(images.float(), {}), (images[:, :1], {}), (images[..., 1:], {})]
    for other, options in others:
        with pytest.raises(InputError, match="made ready for other images, precision or engine"):
            integrated_gradients(ready, other, **options)
    unasked = prepare(classifier(), images[:0], precision="fp32")
    with pytest.raises(InputError, match="made ready for other images"):
        integrated_gradients(unasked, images)


def test_a_network_may_be_made_ready_in_inference_mode(images):
    model = classifier()
    with torch.inference_mode():
        prepare(model, images, precision="fp32")
    assert not prepare(model, images, precision="fp32").split.why_not


def test_a_thread_that_prepares_and_one_in_tf32_do_not_wait_for_each_other(images, monkeypatch):
    """As on a GPU, where the setting of products is the process's."""
    model = classifier()
    tf32 = Network(model, images, precision="tf32")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    begun = threading.Event()

    def ask(*arguments, work=ready.contract.ask):
        begun.set()
        time.sleep(0.3)
        return work(*arguments)

    monkeypatch.setattr(ready.contract, "ask", ask)
    preparing = threading.Thread(
        target=lambda: prepare(classifier(seed=1), images, precision="fp32"), daemon=True
    )
    running = threading.Thread(target=lambda: begun.wait() and tf32.stem(images), daemon=True)
    for thread in (preparing, running):
        thread.start()
    for thread in (preparing, running):
        thread.join(30)
        assert not thread.is_alive()


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_every_network_of_a_process_is_compiled(images, monkeypatch):
    """torch.compile gives up on code that it has compiled eight times."""
    real, stats = torch.compile, torch._dynamo.utils.counters["stats"]
    monkeypatch.setattr(torch, "compile", lambda f, **how: real(f, backend="eager", **how))
    before = stats["unique_graphs"]
    for seed in range(10):
        network = classifier(seed=seed, dtype=torch.float32)
        integrated_gradients(network, images.float(), n_steps=2, engine="compile", batch_size=4)
    assert stats["unique_graphs"] - before >= 10


def test_a_model_on_another_device_is_refused(images):
    with pytest.raises(InputError, match="the model is on meta and its input on cpu"):
        prepare(classifier().to("meta"), images)


# -- gradients ---------------------------------------------------------------------------------


def test_gradients_of_a_function_that_begins_in_place():
    x, y = torch.tensor([[-1.0, 2.0]]), torch.tensor([[3.0, 4.0]])
    by_x, by_y = input_gradients(lambda a, b: (a.relu_().square() * b.mul_(2)).sum(1), (x, y))
    assert by_x.tolist() == [[0, 2 * 2 * 8]]
    assert by_y.tolist() == [[0, 2 * 4]]


def test_inputs_that_are_not_used_have_zero_gradients():
    x, y = torch.rand(2, 3, dtype=torch.float64), torch.rand(2, 1)
    by_x, by_y = input_gradients(lambda a, b: a.sum(1), (x, y))
    assert by_x.equal(torch.ones_like(x))
    assert by_y.equal(torch.zeros_like(y))


def without_gradient(x):
    with torch.no_grad():
        return x.sum(1)


@pytest.mark.parametrize(
    ("f", "what"),
    [
        (lambda x: x.detach().sum(1), "cut by .*detach"),
        (lambda x: (2 * x).argmax(1).float(), "cut by .*argmax"),
        (lambda x: (x > 0.5).sum(1).float(), "cut by .*(gt|>)"),
        (lambda x: x.to(torch.int64).sum(1), "cut by .*to"),
        (lambda x: x.data.sum(1), "cut by .*data"),
        (without_gradient, r"cut by .*sum under no_grad\(\)"),
        (lambda x: torch.ones(len(x)), "does not depend on it"),
        (lambda x: torch.ones(len(x), requires_grad=True), "does not depend on it"),
    ],
)
def test_what_cuts_an_output_off_is_named(f, what):
    with pytest.raises(InputError, match=f"no gradient with respect to its input: .*{what}"):
        input_gradients(f, (torch.rand(2, 3),))


def test_a_rounded_value_has_the_gradient_zero_that_pytorch_gives_it():
    (slope,) = input_gradients(lambda x: x.round().sum(1), (torch.rand(2, 3),))
    assert slope.equal(torch.zeros(2, 3))


class CutOff(nn.Module):
    def __init__(self, cut):
        super().__init__()
        self.network, self.cut = classifier(), cut
        self.eval()

    def forward(self, x):
        return self.cut(self.network, x)


def under_no_grad(network, x):
    with torch.no_grad():
        return network(x)


@pytest.mark.parametrize(
    ("cut", "what"),
    [(lambda network, x: network(x).detach(), "detach"), (under_no_grad, "no_grad")],
)
def test_a_module_that_cuts_is_refused_like_a_function(images, cut, what):
    with pytest.raises(InputError, match=f"no gradient .*{what}"):
        integrated_gradients(CutOff(cut), images)
    with pytest.raises(InputError, match=f"no gradient .*{what}"):
        igmask.IntegratedGradients(CutOff(cut)).attribute(images, target=0)


# -- precisions --------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [classifier, lambda: Whole(classifier())])
@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.06), ("fp16", 0.01)])
def test_half_precision_is_close_and_leaves_the_model_alone(images, make, precision, tolerance):
    model, images = make().float(), images.float()
    state = copy.deepcopy(model.state_dict())
    arguments = {"target": torch.tensor([0, 1, 2]), "n_steps": 8}
    exact = integrated_gradients(model, images, **arguments).values
    half = integrated_gradients(model, images, precision=precision, **arguments).values
    assert half.dtype == torch.float32
    assert 0 < (half - exact).norm() < tolerance * exact.norm()
    for name, value in model.state_dict().items():
        assert value.dtype == state[name].dtype
        assert value.equal(state[name])


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


def test_gradients_that_would_vanish_in_fp16_are_kept_by_the_loss_scale(images, monkeypatch):
    model, images = classifier(dtype=torch.float32), images.float()
    model.insert(5, Times(1e-4))  # then averaged over a few places, and by the classes
    arguments = {"target": torch.tensor([0, 1, 2]), "n_steps": 4}
    exact = integrated_gradients(model, images, **arguments).values
    scaled = integrated_gradients(model, images, precision="fp16", **arguments).values
    assert (scaled - exact).norm() < 0.01 * exact.norm()
    monkeypatch.setattr(network_module, "_SCALES", (1.0,))
    unscaled = integrated_gradients(
        copy.deepcopy(model), images, precision="fp16", **arguments
    ).values
    assert (unscaled - exact).norm() > 0.03 * exact.norm()


def test_the_loss_scale_gives_way_to_large_gradients(images):
    model, images = classifier(dtype=torch.float32), images.float()
    model.append(Times(1000))
    arguments = {"target": torch.tensor([0, 1, 2]), "n_steps": 4, "of": "logit"}
    exact = integrated_gradients(model, images, **arguments).values
    half = integrated_gradients(model, images, precision="fp16", **arguments).values
    assert (half - exact).norm() < 0.01 * exact.norm()


def test_an_overflow_in_fp16_is_reported(images):
    model, images = classifier(dtype=torch.float32), images.float()
    model.insert(5, Times(1e6))
    with pytest.raises(NotFinite, match="half precision"):
        integrated_gradients(model, images, precision="fp16", n_steps=2)


# -- memory ------------------------------------------------------------------------------------


def assert_same(found, expected):
    assert (found.values - expected.values).norm() <= 1e-12 * expected.values.norm()
    for name in ("predicted", "target", "n_steps"):
        assert getattr(found, name).equal(getattr(expected, name))
    torch.testing.assert_close(found.output, expected.output, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.baseline_output, expected.baseline_output, rtol=1e-12, atol=0)


def test_no_more_images_than_a_batch_go_through_any_layer_at_a_time(monkeypatch):
    sizes, forward = [], nn.Conv2d.forward

    def counting(self, x):
        sizes.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(nn.Conv2d, "forward", counting)
    integrated_gradients(classifier(), torch.rand(20, 3, 9, 9).double(), n_steps=2, batch_size=4)
    igmask.IntegratedGradients(classifier()).attribute(
        torch.rand(20, 3, 9, 9).double(), target=0, n_steps=2, internal_batch_size=4
    )
    assert max(sizes) == 4


def test_a_batch_that_does_not_fit_is_halved(images):
    baselines = torch.stack((images * 0.1, images * 0.2))
    model = Whole(classifier(), most=3)
    found = integrated_gradients(model, images, baselines=baselines, n_steps=5, batch_size=14)
    expected = integrated_gradients(classifier(), images, baselines=baselines, n_steps=5)
    assert_same(found, expected)
    # 18 points in 2 batches, halved twice; and the contract, of two images and of one
    assert set(model.sizes) == {9, 4, 2, 1}


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
)
def test_a_batch_that_does_not_fit_behind_the_stem_is_halved(images, monkeypatch, error):
    monkeypatch.setattr("igmask.engine.queue.least_batch", lambda _: 1)
    expected = integrated_gradients(classifier(), images, n_steps=5)
    sizes = []

    def with_little_memory(trunk):
        def little(*points):
            sizes.append(len(points[0]))
            if len(points[0]) > 2:
                raise error
            return trunk(*points)

        return little

    monkeypatch.setitem(network_module.ENGINES, "eager", with_little_memory)
    assert_same(integrated_gradients(classifier(), images, n_steps=5, batch_size=8), expected)
    assert set(sizes) == {6, 3, 1}  # 18 points in 3 batches, halved


@pytest.mark.parametrize("of", ["function", "module"])
def test_captums_class_halves_its_batches_too(images, of):
    model = Whole(classifier(), most=3)
    f = model if of == "module" else lambda x: model(x)
    found = igmask.IntegratedGradients(f).attribute(images, target=[0, 1, 2], n_steps=5)
    expected = igmask.IntegratedGradients(classifier()).attribute(
        images, target=[0, 1, 2], n_steps=5
    )
    assert (found - expected).norm() <= 1e-12 * expected.norm()


def test_memory_that_does_not_hold_one_point_is_an_error(images):
    with pytest.raises(torch.OutOfMemoryError, match="too large for this network"):
        integrated_gradients(Whole(classifier(), most=0), images, batch_size=4)


def test_other_errors_of_the_network_are_not_hidden(images):
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(InputError, match="mat1 and mat2") as caught:
        integrated_gradients(Broken().eval(), images)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_batches_follow_the_free_memory(images, monkeypatch):
    network = prepare(classifier(), images)
    each = network.bytes_per_point(images)
    sizes = []
    for available in (1e15, 4 * 10.5 * each, 4 * 3 * each, 1):
        monkeypatch.setattr(
            psutil, "virtual_memory", lambda free=available: SimpleNamespace(available=int(free))
        )
        sizes.append(network.batch_size(images))
    assert sizes == [64, 10, 3, 1]


@pytest.mark.parametrize("wrap", [lambda network: network, Whole])
def test_a_deeper_or_wider_network_needs_more_memory(images, wrap):
    def deep(n, channels=4):
        layers = [part for _ in range(n) for part in (nn.Conv2d(channels, channels, 1), nn.ReLU())]
        model = nn.Sequential(nn.Conv2d(3, channels, 3), *layers, nn.Flatten())
        return prepare(wrap(model.double().eval()), images).bytes_per_point(images)

    point = 4 * 7 * 7 * 8
    assert point <= deep(1) <= deep(4) - 3 * point
    assert deep(4, channels=12) > 1.8 * deep(4)


def test_weights_are_not_counted_as_memory_of_a_point(images):
    model = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(243, 3000), nn.ReLU())
    found = prepare(model.double().eval(), images).bytes_per_point(images)
    assert found < model[2].weight.numel() * 8 / 10


# -- threads -----------------------------------------------------------------------------------


def test_threads_with_models_of_their_own_find_what_they_find_alone(images):
    def work(models, wait=lambda: None):
        results = []
        wait()
        for model in models:
            results.append(integrated_gradients(model, images, n_steps=3).values)
            attribution = igmask.IntegratedGradients(lambda x, model=model: model(x))
            results += attribution.attribute(
                images, target=0, n_steps=3, return_convergence_delta=True
            )
        return results

    models = [[classifier(seed=10 * k + i) for i in range(3)] for k in range(8)]
    alone = [work(copy.deepcopy(own)) for own in models]
    barrier = threading.Barrier(8)
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(work, own, lambda: barrier.wait(timeout=10)) for own in models]
        together = [future.result(timeout=10) for future in futures]
    for found, expected in zip(together, alone, strict=True):
        for one, other in zip(found, expected, strict=True):
            assert one.equal(other)


def test_threads_may_split_networks_at_the_same_time(images):
    def work():
        for _ in range(6):
            deep = nn.Sequential(*[nn.Conv2d(3, 3, 1) for _ in range(40)], nn.ReLU(), nn.Flatten())
            assert prepare(deep.double().eval(), images).split.ends == ("39 (Conv2d)",)

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(work) for _ in range(4)]:
            future.result(timeout=20)


class SlowToTrace(nn.Module):
    """Takes its time while it is traced, and says when that begins."""

    def __init__(self):
        super().__init__()
        self.network, self.begun = classifier(), threading.Event()

    def forward(self, x):
        if not isinstance(x, torch.Tensor):
            self.begun.set()
            time.sleep(0.3)
        return self.network(x)


@pytest.mark.parametrize(
    "work",
    [
        lambda model, x: integrated_gradients(model, x, n_steps=3).values,
        lambda model, x: igmask.IntegratedGradients(model).attribute(x, target=0, n_steps=3),
        lambda model, x: igmask.IntegratedGradients(lambda x: model(x)).attribute(
            x, target=0, n_steps=3
        ),
        lambda model, x: igmask.IntegratedGradients(model).compute_convergence_delta(
            x, 0 * x, x, target=0
        ),
    ],
    ids=["engine", "module", "function", "delta"],
)
def test_a_thread_may_trace_while_another_attributes(images, work):
    model, slow = classifier(), SlowToTrace().eval()
    expected = work(model, images)
    with ThreadPoolExecutor(1) as pool:
        tracing = pool.submit(integrated_gradients, slow, images, n_steps=2)
        assert slow.begun.wait(timeout=10)
        assert work(model, images).equal(expected)
        tracing.result(timeout=10)


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_compiled_and_eager_agree(images):
    model, images = classifier(dtype=torch.float32), images.float()
    eager = integrated_gradients(model, images, n_steps=4).values
    compiled = integrated_gradients(model, images, n_steps=4, engine="compile").values
    assert (compiled - eager).norm() < 1e-5 * eager.norm()


def test_the_scale_of_fp16_is_each_batchs_own(images):
    model, images = classifier(dtype=torch.float32), images.float()
    arguments = {"n_steps": 4, "of": "logit", "precision": "fp16"}
    expected = integrated_gradients(model, images, **arguments).values
    network = prepare(model, images, precision="fp16")
    points = tuple(u.half() for u in network.stem(images))
    slopes = network.gradients(points, lambda outputs: 1e3 * outputs[:, 0])  # overflows at first
    assert all(bool(slope.isfinite().all()) for slope in slopes)
    assert integrated_gradients(model, images, **arguments).values.equal(expected)


class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(243, 5)
        self.scales, self.options = [1.0], SimpleNamespace(slope=0.1)

    def forward(self, x):
        negative = self.linear(x.flatten(1)) - 9
        return self.scales[0] * nn.functional.leaky_relu(negative, self.options.slope)


@pytest.mark.parametrize("change", ["list", "object"])
def test_a_change_inside_an_attribute_is_noticed(images, change):
    model = Listed().double().eval()
    before = integrated_gradients(model, images, n_steps=4, of="logit").values
    if change == "list":
        model.scales[0] = -3.0
    else:
        model.options.slope = 2.0
    after = integrated_gradients(model, images, n_steps=4, of="logit").values
    whole = integrated_gradients(lambda x: model(x), images, n_steps=4, of="logit").values
    assert (after - whole).norm() < 1e-12 * whole.norm()
    assert not torch.allclose(after, before)


def test_stochastic_depth_in_training_is_refused(images):
    layers = (nn.Conv2d(3, 4, 3), StochasticDepth(0.5, "row"), nn.Flatten(), nn.LazyLinear(5))
    model = nn.Sequential(*layers).double()
    model(images)
    with pytest.raises(InputError, match="StochasticDepth"):
        igmask.IntegratedGradients(model).attribute(images, target=0)


def test_a_network_that_was_made_ready_is_freed_with_its_model(images):
    alive = []
    for _ in range(3):
        model = classifier()
        integrated_gradients(model, images, n_steps=2)
        alive.append(weakref.ref(prepare(model, images, precision="fp32")))
        del model
        gc.collect()
        gc.collect()
    assert [reference() for reference in alive] == [None] * 3


class Attending(nn.Module):
    """Patches that attend to each other, as in a vision transformer."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 3, 3)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 5)
        self.eval()

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1))


class Called(TorchDispatchMode):
    """The names of PyTorch's operations in a block."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.name())
        return function(*args, **(kwargs or {}))


def test_tokens_are_multiplied_by_attentions_weight_as_one_matrix(images):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Attending()
    x = images.float()
    network = prepare(model, x)
    points = network.split.entries(network.stem(x))
    with Called() as called:
        slopes = network.gradients(tuple(p.clone() for p in points), lambda outputs: outputs[:, 1])
    assert "aten::mm" in called.names
    assert "aten::bmm" not in called.names
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    torch.testing.assert_close(network.stem_transposed(x, slopes), expected)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
