"""Configurations: defaults, and every mistake named before anything runs."""

import copy

import pytest

from igmask.asked import config, fields
from igmask.asked.settings import Geometry, percent, schema
from igmask.errors import InputError

MINIMAL = {
    "dataset": {"source": "demo"},
    "models": {"a": {"source": "m:f", "size": 32}},
}


def changed(path, value):
    settings = copy.deepcopy(MINIMAL)
    place = settings
    *parents, last = path.split("/")
    for key in parents:
        place = place.setdefault(key, {})
    place[last] = value
    return settings


def test_defaults_are_the_experiment_as_published():
    study = config.parse(MINIMAL)
    assert fields.plain(study.attribution) == {
        "method": "integrated-gradients",
        "of": "probability",
        "target": "predicted",
        "baseline": "black",
        "blur_sigma": 10,
        "n_baselines": 10,
        "rule": "right",
        "n_steps": 50,
        "skip": None,
        "tolerance": 0.05,
        "agreement": 0.95,
        "most_steps": 800,
        "precision": "fp32",
        "n_samples": 50,
        "noise": 0.15,
        "maps": None,
    }
    assert fields.plain(study.squares) == {"side": 3, "score": "positive"}
    assert fields.plain(study.selection) == {"by": "mass", "p": (90, 70, 50, 30)}
    assert fields.plain(study.masking) == {
        "modes": ("keep", "drop"),
        "fills": ("black",),
        "controls": ("random",),
        "draws": 5,
        "blur_sigma": 10,
        "transfer": False,
    }
    assert fields.plain(study.curves) == {"points": 11}
    assert study.dataset.name == "demo"


def test_defaults_are_filled_in_below_models_and_train():
    study = config.parse(changed("models/a/train", {"epochs": 2}))
    assert study.models["a"].train.epochs == 2
    assert study.models["a"].train.batch_size == 32
    assert study.models["a"].prefix == ""


def test_settings_make_the_same_model_and_dataset_again():
    study = config.parse(changed("models/a/train", {}))
    for item, make in ((study.models["a"], config.model), (study.dataset, config.dataset)):
        assert make(fields.plain(item)) == item


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("modles", {}, "modles: unknown key; did you mean 'models'"),
        ("models/a/wights", "x", "models.a.wights: unknown key; did you mean 'weights'"),
        ("attribution/n_step", 5, "attribution.n_step: unknown key; did you mean 'n_steps'"),
        ("attribution/n_steps", 0, "attribution.n_steps: 0 is too small; it must be a whole"),
        (
            "attribution/n_steps",
            "50",
            "'50' does not fit; .* at least 1, or auto; write 50",
        ),
        ("attribution/rule", "simpson", "attribution.rule: 'simpson' is not one of"),
        ("selection/area", [50], "selection.area: unknown key; known are by, p"),
        ("selection/by", "pixels", "'pixels' is not one of mass, count, area"),
        ("curves/points", 1, "curves.points: 1 is no curve; give at least 2, its ends, or 0"),
        ("masking/controls", ["randomized"], "did you mean 'randomised'"),
        ("masking/fills", ["noisy_linear"], "did you mean 'noisy-linear'"),
        ("attribution/baseline", "nosuch.png", "attribution.baseline: there is no file"),
        ("selection/p", [50, 0], "selection.p.1: 0 is too small; it must be a number above 0 and"),
        ("selection/p", [101], "selection.p.0: 101 is too large; .* above 0 and at most 100"),
        ("selection/p", [50, 50.0], "selection.p: 50 is there twice"),
        ("figures/formats", ["png", "png"], "figures.formats: .*png.* is there twice"),
        ("selection/p", [12.345], "selection.p: 12.345 has more than two decimals"),
        ("selection/p", [], "selection.p: it is empty; it must be a list of at least 1"),
        (
            "masking/fills",
            ["black", "black"],
            "fills: 'black' is there twice; .* none twice",
        ),
        ("masking/modes", ["kepe"], "masking.modes.0: 'kepe' is not one of"),
        ("models/b c", {"source": "m:f", "size": 8}, "'b c' may only have letters"),
        ("models/a;rm", {"source": "m:f", "size": 8}, "'a;rm' may only have letters"),
        ("models/a", {"size": 8}, "models.a.source: missing"),
        ("models/a", {"source": "m:f"}, "models.a.size: missing"),
        ("models/a", {"source": "resnet18", "size": 64}, "models.a.weights: missing; resnet18"),
        ("attribution", {"rule": "trapezoid", "n_steps": 1}, "n_steps of rule 'trapezoid'"),
        ("models/a", {"source": "m:f", "size": 64, "resize": 32}, "resize: 32 is less than"),
        ("models/a/weights", "no/such file.pth", "models.a.weights: there is no file"),
        ("models/a", {"source": "vgg16", "weights": "IMAGENET1K_V1", "key": "x"}, "a.key: only a"),
        (
            "models/a",
            {"source": "m:f", "size": 8, "mean": [123.7, 116.3, 103.5]},
            r"a.mean: \[123.7, 116.3, 103.5\] is of images in \[0, 255\]; images here are in "
            r"\[0, 1\], so divide by 255, and std, which is 1, too",
        ),
        (
            "models/a",
            {"source": "m:f", "size": 8, "std": [58.4, 57.1, 57.4]},
            r"a.std: \[58.4, 57.1, 57.4\] is of images in .* divide by 255$",
        ),
        (
            "models/a",
            {"source": "m:f", "size": 8, "mean": [1, 1.01, 0], "std": [0.2, 0.2, 0.2]},
            r"a.mean: .* divide by 255$",
        ),
        ("models/a/output", -1, "models.a.output: -1 is too small"),
        ("models/a/output", 1.5, "models.a.output: 1.5 is a number with decimals"),
        ("models/a/output", ["logits"], "models.a.output: .*'logits'.* is a list"),
        ("models", {}, "models: it is empty; it must be keys and values, at least one"),
        (
            "dataset/source",
            "foldr",
            "dataset.source: 'foldr' is not one of demo, folder, photos, csv, parquet, webdataset, "
            "torchvision or module:callable; did you mean 'folder'",
        ),
        ("dataset/source", "csv:", "dataset.source: 'csv:' is not one of .* did you mean 'csv'"),
        ("dataset", {"source": "folder"}, "dataset.root: missing"),
        ("dataset", {"source": "demo", "scale": 0}, "dataset.scale: 0 is"),
        ("dataset", {"source": "folder", "root": "no such"}, "dataset.root: there is no folder"),
        ("dataset", {"source": "csv", "root": "."}, "dataset.labels: missing"),
        ("dataset", {"source": "torchvision", "root": "."}, "dataset.class: missing"),
        ("dataset/limit", 0, "dataset.limit: 0 is too small; .* at least 1, or nothing"),
        ("seed", -1, "seed: -1 is too small; it must be a whole number of at least 0"),
        ("attribution/tolerance", 0, "attribution.tolerance: 0 is too small; .* a number above 0"),
        ("attribution/precision", "fp8", "attribution.precision: 'fp8' is not one of"),
        ("compute/engine", "fast", "compute.engine: 'fast' is not one of"),
        (
            "compute/device",
            "tpu",
            "compute.device: 'tpu' does not fit; it must be auto, cpu",
        ),
    ],
)
def test_every_mistake_is_named(path, value, message):
    with pytest.raises(InputError, match=message):
        config.parse(changed(path, value))


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("selection/p", [50, NAN], "selection.p.1: nan is not finite; it must be a number above 0"),
        ("selection/p", [INFINITE], "selection.p.0: inf is not finite; it must be a number"),
        ("selection/p", ["50%"], r"selection.p.0: '50%' is text; .* at most 100; write 50$"),
        ("selection/p", "50 %", r"selection.p: '50 %' is text; .* list .*; write \[50\]$"),
        ("selection/p", 50, r"selection.p: 50 is a number; it must be a list .*; write \[50\]$"),
        ("selection/p", ["all"], r"selection.p.0: 'all' is text; .* at most 100$"),
        ("selection/p", [True], "selection.p.0: true is a truth value; it must be a number"),
        ("selection/p", [None], "selection.p.0: nothing is given; it must be a number"),
        ("selection", None, r"selection: nothing is given; .* keys and values; or leave it out$"),
        ("models/a/mean", [0.5, 0.5], r"a.mean: \[0.5, 0.5\] has 2; it must be a list of 3 \(each"),
        ("models/a/mean", [NAN, 0, 0], "models.a.mean.0: nan is not finite; it must be a number"),
        ("models/a/mean", "0 0 0", r"models.a.mean: '0 0 0' is text; .* a number\), or nothing$"),
        ("models/a/std", [1, INFINITE, 1], "models.a.std.1: inf is not finite; .* above 0"),
        ("models/a/std", [1, 0, 1], "models.a.std.1: 0 is too small; it must be a number above 0"),
        ("models/a/train", {"learning_rate": "1e-3"}, "'1e-3' is text; .* above 0; write 0.001$"),
        ("models/a/size", 31.5, "a.size: 31.5 is a number with decimals; it must be a whole"),
        ("models/a/sha256", "abc", "a.sha256: 'abc' does not fit; it must be 64 digits of 0-9"),
        (
            "models/a/source",
            "a b",
            "'a b' does not fit; .* of torchvision, timm/NAME, hf/OWNER/NAME, or module:callable",
        ),
        ("models/a/interpolation", "cubic", "is not one of nearest, .*; did you mean 'bicubic'"),
        ("models/a/arguments", [1], r"a.arguments: \[1\] is a list; it must be keys and values"),
        ("attribution/n_steps", 50.0, "50.0 is a number with decimals; .* or auto; write 50$"),
        ("attribution/n_steps", NAN, "attribution.n_steps: nan is not finite; it must be a whole"),
        ("attribution/blur_sigma", INFINITE, "attribution.blur_sigma: inf is not finite"),
        ("attribution/tolerance", "5%", "'5%' is text; it must be a number above 0$"),
        ("masking/fills", "black", r"'black' is text; .*, none twice\); write \['black'\]$"),
        ("masking/modes", ["kepe"], "is not one of keep, drop; did you mean 'keep'"),
        ("dataset/columns", ["a", "b", "c"], "has 3; it must be a list of 2"),
        ("dataset/columns", ["file", 2], "dataset.columns.1: 2 is a number; it must be text"),
        ("dataset/download", "yes", "dataset.download: 'yes' is text; it must be true or false"),
        ("dataset/name", "a b", "dataset.name: 'a b' does not fit; it must be letters, digits and"),
        (
            "dataset/limit",
            "10%",
            "'10%' is text; it must be a whole number of at least 1, or n",
        ),
        ("figures/n_images", 30, "30 is too large; it must be a whole number of at least 1 and at"),
    ],
)
def test_mistakes_say_what_came_and_what_is_allowed(path, value, message):
    with pytest.raises(InputError, match=message):
        config.parse(changed(path, value))


def validators(rules):
    """Every key of a schema's rules, wherever in it, with those rules."""
    for key, value in rules.items():
        yield key, rules
        if key == "properties":
            for below in value.values():
                yield from validators(below)
        elif key in ("items", "additionalProperties", "propertyNames") and value is not False:
            yield from validators(value)


def test_every_validator_of_the_schema_has_words_of_its_own():
    found = list(validators(schema()))
    assert all("allowed" in rules for key, rules in found if key == "pattern")
    annotations = {"$schema", "title", "description", "default", "allowed", "examples"}
    nested = {"properties", "items", "allOf", "propertyNames"}  # what is in them has validators
    known = {
        *("type", "enum", "pattern", "required", "additionalProperties", "uniqueItems"),
        *("minimum", "exclusiveMinimum", "maximum", "minItems", "maxItems", "minProperties"),
    }
    assert {key for key, _ in found} <= annotations | nested | known


def test_a_p_below_1_is_a_warning():
    assert config.warnings(config.parse(changed("selection/p", [90, 1, 12.5]))) == []
    study = config.parse(changed("selection/p", [0.5, 50, 0.25]))
    assert config.warnings(study) == [
        "selection.p: 0.5 means 0.5 %; write 50 if 50 % is meant",
        "selection.p: 0.25 means 0.25 %; write 25 if 25 % is meant",
    ]


def test_automatic_steps_need_a_rule_that_can_be_refined():
    settings = changed("attribution/n_steps", "auto")
    assert config.parse(settings).attribution.n_steps == "auto"
    settings["attribution"]["rule"] = "middle"
    with pytest.raises(InputError, match="not 'middle'"):
        config.parse(settings)
    settings["attribution"]["rule"] = "adaptive"
    assert config.parse(settings).attribution.rule == "adaptive"


@pytest.mark.parametrize(
    "others", [{"rule": "adaptive"}, {"n_steps": "auto"}, {"of": "logit"}], ids=str
)
def test_skip_is_for_fixed_steps_of_a_probability(others):
    settings = changed("attribution", {"skip": 1e-4, "rule": "left"})
    assert config.parse(settings).attribution.skip == 1e-4
    settings["attribution"] |= others
    with pytest.raises(InputError, match="attribution: skip leaves out steps of a fixed rule"):
        config.parse(settings)


def test_all_mistakes_are_named_at_once():
    settings = changed("attribution/n_steps", -1)
    settings["sed"] = 3
    settings["models"]["a"]["sizes"] = 3
    with pytest.raises(InputError) as caught:
        config.parse(settings)
    message = str(caught.value)
    assert all(key in message for key in ("n_steps", "sed", "models.a.sizes"))


def test_missing_images_say_how_they_are_had_and_need_not_be_there_yet():
    settings = changed(
        "dataset", {"source": "folder", "root": "no such", "obtain": "a.tar\nof example.org\n"}
    )
    with pytest.raises(InputError, match=r"no folder 'no such'\n    a\.tar\n    of example\.org$"):
        config.parse(settings)
    assert config.parse(settings, with_files=False).dataset.root == "no such"


def test_training_needs_the_demo_and_no_weights(tmp_path):
    settings = changed("models/a/train", {})
    settings["dataset"] = {"source": "folder", "root": str(tmp_path)}
    with pytest.raises(InputError, match=r"models\.a\.train: only the demo"):
        config.parse(settings)
    weights = tmp_path / "w.pth"
    weights.touch()
    settings = changed("models/a/train", {})
    settings["models"]["a"]["weights"] = str(weights)
    with pytest.raises(InputError, match="either train or weights"):
        config.parse(settings)


@pytest.mark.parametrize(
    ("source", "weights", "kind"),
    [
        ("resnet18", None, "unsaid"),
        ("m:f", None, "unsaid"),
        ("resnet18", "none", "none"),
        ("m:f", "none", "none"),
        ("resnet18", "IMAGENET1K_V1", "torchvision"),
        ("resnet18", "weights.pth", "file"),
        ("m:f", "WEIGHTS", "file"),
        ("m:f", "https://example.org/w.pth", "url"),
    ],
)
def test_kinds_of_weights(source, weights, kind):
    assert config.model({"source": source, "weights": weights}).weights_kind == kind


def test_names_may_be_numbers():
    study = config.parse(changed("models", {50: {"source": "m:f", "size": 8}}))
    assert list(study.models) == ["50"]


def test_given_settings_are_those_that_differ_from_the_defaults():
    settings = {"source": "m:f", "size": 8, "mean": [0.1, 0.2, 0.3], "train": {"epochs": 2}}
    model = config.model(settings)
    given = fields.given(model)
    assert set(given) == set(settings)
    assert config.model(given) == model
    assert fields.given(config.dataset({"source": "demo", "n_images": 20})) == {
        "source": "demo",
        "name": "demo",
        "n_images": 20,
    }


def test_geometry_names_tell_geometries_apart():
    names = {
        Geometry(224, 256, "bilinear").name,
        Geometry(224, 256, "bicubic").name,
        Geometry(224, 232, "bilinear").name,
        Geometry(224, None, "bilinear").name,
        Geometry(299, 342, "bilinear").name,
    }
    assert len(names) == 5
    assert Geometry(32, None, "bilinear").name == "32"


@pytest.mark.parametrize(("p", "text"), [(50, "50"), (50.0, "50"), (12.5, "12.5"), (0.01, "0.01")])
def test_percent_as_text(p, text):
    assert percent(p) == text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("seed: 1\nseed: 2\n", "line 2: seed is there twice"),
        ("models:\n  a: {source: x}\n  b: {source: y}\n  'a': {source: z}\n", "line 4: a is there"),
        ("selection: {p: [50],\n  p: [30]}\n", "line 2: p is there twice"),
        ("a: [1\nb: 2", "flow sequence"),
    ],
)
def test_a_key_that_is_there_twice_is_refused(text, problem):
    with pytest.raises(InputError, match=f"(?s)mine.yaml.*{problem}"):
        config.of_yaml(text, "mine.yaml")


def test_what_is_merged_in_may_be_said_again():
    text = "base: &base {size: 32, mean: [0, 0, 0]}\nown: {<<: *base, size: 64}\n'1': a\n1: b\n"
    found = config.of_yaml(text, "mine.yaml")
    assert found["own"] == {"size": 64, "mean": [0, 0, 0]}
    assert (found["1"], found[1]) == ("a", "b")


KEYS = {
    "root": "photos", "files": "val-*", "labels": "l.csv", "columns": ["a", "b"],
    "classes": "imagenet", "class": "CIFAR10", "arguments": {"train": False}, "download": True,
    "n_images": 20, "n_train": 20, "scale": 255, "border": 1, "obtain": "ask", "n_expected": 3,
    "limit": 2, "on_bad_image": "skip", "name": "mine",
}  # fmt: skip
TAKEN = {  # by each source, beside those that all take
    "demo": {"n_images", "n_train"},
    "folder": {"root", "classes"},
    "photos": {"root", "classes"},
    "csv": {"root", "classes", "labels", "columns"},
    "parquet": {"root", "classes", "files", "columns"},
    "webdataset": {"root", "classes", "files", "columns"},
    "torchvision": {"root", "classes", "class", "arguments", "download"},
}
OF_SOME = set().union(*TAKEN.values())


@pytest.mark.parametrize("source", TAKEN)
def test_keys_of_other_sources_are_refused(source):
    models = {"a": {"source": "m:f", "size": 8}}
    others = OF_SOME - TAKEN[source]
    right = {"source": source} | {key: x for key, x in KEYS.items() if key not in others}
    config.parse({"dataset": right, "models": models}, with_files=False)
    for key in others:
        having = [name for name, keys in TAKEN.items() if key in keys]
        said = f"{key}: not for source {source}; it belongs to {', '.join(having)}$"
        with pytest.raises(InputError, match=rf"(?m)^  dataset\.{said}"):
            config.parse({"dataset": right | {key: KEYS[key]}, "models": models}, with_files=False)
        with pytest.raises(InputError, match=rf"(?m)^  {said}"):
            config.dataset(right | {key: KEYS[key]})
    defaults = {"n_images": 300, "n_train": 1500, "download": False, "files": None}
    assert config.dataset(right | {x: value for x, value in defaults.items() if x in others})


def test_a_source_of_ones_own_takes_all_keys():
    found = config.dataset(KEYS | {"source": "mine:photos"})
    assert (found.class_, found.n_train, found.columns) == ("CIFAR10", 20, ("a", "b"))
