"""Every setting, once: its type, default, bounds, meaning, and when it counts.

A group of config.yaml is a class. Its docstring says what each of the keys means, in the words of
--help; the fields say the rest. Whatever else has to know a setting derives from these: the JSON
schema that a configuration is checked against, the options of the commands, and by the recipes the
words of a job and what files say of their making. No torch.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from igmask.asked.fields import json_schema, setting
from igmask.asked.masking import Curves, Masking, Selection, Squares
from igmask.asked.own import is_own, own_code
from igmask.asked.testing import Readings, Statistics
from igmask.errors import InputError

INTEGRATED, SAMPLED = "integrated-gradients", ("smoothgrad", "expected-gradients")
BASELINES = ("black", "white", "mean", "blur", "uniform")
_OF_FILES = ("folder", "photos", "csv", "parquet", "webdataset", "torchvision")
SOURCES = ("demo", *_OF_FILES)
CLASSES = ("imagenet",)  # lists of classes that come with igmask

_NAME: dict[str, Any] = {
    "pattern": "^[A-Za-z0-9][A-Za-z0-9_.+-]*$",
    "allowed": "letters, digits and _ . + -, the first a letter or digit",
}
_POSITIVE = {"type": "number", "exclusiveMinimum": 0}


@dataclass(frozen=True)
class Dataset:
    """The images and their labels.

    source:       demo: drawn here; folder: one folder of images a class; photos: a folder of images
                  without labels, of which what a network says of the original is the label; csv:
                  one folder of images and a table of labels; parquet: files as Hugging Face ships
                  datasets; webdataset: tar files with .cls or .json beside each image; torchvision:
                  a class of torchvision.datasets; module:callable: a function of your own, which is
                  given these settings and returns names, labels, names of classes and a function
                  that opens the image at a place
    name:         folder under results/ that takes what belongs to this dataset; the source's name
                  by default
    root:         folder of the images or of the files that hold them, or where torchvision keeps
                  its data; of photos by default those that come with scikit-image
    files:        pattern of the names of those that count, such as validation-*; by default all
                  below root, in alphabetical order
    labels:       the table, with a header
    columns:      csv: its columns of file names and labels (file label); parquet: of images and
                  labels (image label); webdataset: the second is the label's key in .json (label)
    classes:      file that gives each class name (folder name, wnid) its index: one name a line in
                  the order of the indices, or JSON; imagenet: the 1,000 wnids and names of ILSVRC
                  2012; by default folders that are numbers count as these, others in alphabetical
                  order
    scale:        the value of white in grey images of more than 8 bits (16-bit PNG, float TIFF),
                  such as 65535; without it they are bad images
    border:       pixels removed on every side of an image before anything else, such as a frame
    class:        the name of the dataset class
    arguments:    its keyword arguments, such as train: false
    download:     fetch the data where it is missing
    obtain:       how the files are had; said where some are missing
    n_expected:   how many images there should be; igmask check warns of another number
    n_images:     how many test images are drawn
    n_train:      how many training images are drawn
    limit:        only the first n images of each class, or of all without labels, for trial runs
    on_bad_image: an image that cannot be read: stop and name it, or leave it out and list it under
                  the tables
    """

    source: str = setting(choices=SOURCES, own=True)
    name: str | None = setting(None, **_NAME)
    root: str | None = setting(None, sources=_OF_FILES)
    files: str | None = setting(None, sources=("parquet", "webdataset"))
    labels: str | None = setting(None, sources=("csv",))
    columns: tuple[str, str] | None = setting(None, sources=("csv", "parquet", "webdataset"))
    classes: str | None = setting(None, sources=_OF_FILES)
    scale: float | None = setting(None, exclusiveMinimum=0)
    border: int = setting(0, minimum=0)
    class_: str | None = setting(None, sources=("torchvision",))
    arguments: dict[str, Any] = setting({}, sources=("torchvision",))
    download: bool = setting(False, sources=("torchvision",))
    obtain: str | None = None
    n_expected: int | None = setting(None, minimum=1)
    n_images: int = setting(300, sources=("demo",), minimum=10)
    n_train: int = setting(1500, sources=("demo",), minimum=10)
    limit: int | None = setting(None, minimum=1)
    on_bad_image: str = setting("error", choices=("error", "skip"))

    NEEDS: ClassVar[dict[str, tuple[str, ...]]] = {  # by its source
        "folder": ("root",),
        "csv": ("root", "labels"),
        "parquet": ("root",),
        "webdataset": ("root",),
        "torchvision": ("root", "class"),
    }

    @property
    def tables(self) -> dict[str, str]:
        """{key: file} of the tables that it names, of labels and of classes."""
        named = {"labels": self.labels, "classes": self.classes}
        return {key: path for key, path in named.items() if path and path not in CLASSES}

    # Whose images are files below `root`, which has to be there, and whose names can be watched.
    FOLDERS: ClassVar[tuple[str, ...]] = ("folder", "photos", "csv", "parquet", "webdataset")
    # Of those the ones whose images lie many in a file, which ends so.
    ARCHIVES: ClassVar[dict[str, str]] = {"parquet": ".parquet", "webdataset": ".tar"}


@dataclass(frozen=True)
class Geometry:
    """How an image becomes a square of `size` pixels: resize the shorter side, crop the centre.

    With `squash` both sides are resized to `resize`, or else to `size`, whatever the image's shape.
    """

    size: int
    resize: int | None = None
    interpolation: str = "bilinear"
    squash: bool = setting(False, counts=lambda geometry: geometry.squash)

    def __post_init__(self) -> None:
        if self.squash and self.resize is None:
            object.__setattr__(self, "resize", self.size)

    @property
    def name(self) -> str:
        """A name for folders: 224-resize256-bilinear, or 32 where nothing is resized."""
        how = "squash" if self.squash else "resize"
        resized = f"-{how}{self.resize}-{self.interpolation}" if self.resize else ""
        return f"{self.size}{resized}"


@dataclass(frozen=True)
class Train:
    """How a demo model is trained.

    epochs:        passes over the training images
    batch_size:    images a step
    learning_rate: the largest of the one-cycle schedule
    """

    epochs: int = setting(5, minimum=1)
    batch_size: int = setting(32, minimum=1)
    learning_rate: float = setting(0.01, exclusiveMinimum=0)


LIBRARIES = ("timm", "hf")  # whose networks, named timm/…, hf/…, have weights of their own
WITHOUT_FILE = ("unsaid", "none", "library")  # kinds of weights of which igmask looks for no file


@dataclass(frozen=True)
class Model:
    """A network, its weights and its input.

    source:        a classifier of torchvision by name, one of timm as timm/NAME, one of the Hugging
                   Face hub that transformers makes as hf/OWNER/NAME, or module:callable that
                   returns a torch.nn.Module
    arguments:     keyword arguments of the callable
    weights:       a weights name of torchvision (IMAGENET1K_V1), or a state dict: a file or URL,
                   .pth or .safetensors; none: random weights are meant; those of timm and the hub
                   have theirs by name
    sha256:        hash of the weights file, checked before it is read
    key:           entry of the checkpoint that holds the state dict
    prefix:        start of the parameter names to strip, such as module.
    output:        entry that holds the logits, by its name or index, of a network whose output is a
                   tuple, list, dict or dataclass
    size:          side of the square input, in pixels; torchvision's weights, timm and the hub know
    resize:        length of the shorter side before the centre crop to size; none: crop only
    squash:        both sides get the length `resize`, or else `size`, whatever the image's shape
    interpolation: of the resizing (bilinear)
    mean:          of the normalisation, a colour (0 0 0)
    std:           of the normalisation, a colour (1 1 1)
    train:         train the model on the demo's training images instead of loading weights
    """

    source: str = setting(
        pattern="^(timm/[A-Za-z0-9_.]+|hf(/[A-Za-z0-9_][A-Za-z0-9_.-]*){1,2}"
        "|[A-Za-z_][A-Za-z0-9_.]*(:[A-Za-z_][A-Za-z0-9_.]*)?)$",
        allowed="a name of torchvision, timm/NAME, hf/OWNER/NAME, or module:callable",
    )
    arguments: dict[str, Any] = setting({})
    weights: str | None = None
    sha256: str | None = setting(None, pattern="^[0-9a-f]{64}$", allowed="64 digits of 0-9 and a-f")
    key: str | None = None
    prefix: str = ""
    output: str | int | None = setting(None, minimum=0)
    size: int | None = setting(None, minimum=1)
    resize: int | None = setting(None, minimum=1)
    squash: bool = setting(False, counts=lambda group: group.squash)
    interpolation: str | None = setting(None, choices=("nearest", "bilinear", "bicubic", "lanczos"))
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = setting(None, items=_POSITIVE)
    train: Train | None = None

    @property
    def geometry(self) -> Geometry:
        """How images are cut for it; raises InputError if that is not known."""
        if self.size is None:
            raise InputError(
                f"{self.source}: the size of its input is not known; set `size`, as in "
                f'{{"source": "{self.source}", "size": 224}}'
            )
        return Geometry(self.size, self.resize, self.interpolation or "bilinear", self.squash)

    @property
    def library(self) -> str:
        """One of LIBRARIES, or `torchvision`; empty for a callable."""
        if ":" in self.source:
            return ""
        name, named, _ = self.source.partition("/")
        return name if named else "torchvision"

    @property
    def weights_kind(self) -> str:
        """`unsaid`, `none`, `torchvision` (a name such as DEFAULT), `library`, `url` or `file`.

        With `none` random weights are meant; with `unsaid` a callable may load weights itself.
        """
        if self.weights in (None, "none"):
            return self.weights or ("library" if self.library in LIBRARIES else "unsaid")
        if self.library == "torchvision" and re.fullmatch(r"[A-Z][A-Z0-9_]*", self.weights):
            return "torchvision"
        return "url" if "://" in self.weights else "file"

    def files(self, *own: str) -> dict[str, list[Path]]:
        """The files that it is made of, weights and code, as far as there are any here.

        own: names of which some may be functions of one's own, whose modules are code, too
        """
        weights = [Path(str(self.weights))] if self.weights_kind == "file" else []
        files = {"weights": weights, "code": own_code(self.source, *own)}
        return {kind: paths for kind, paths in files.items() if paths}


@dataclass(frozen=True)
class Attribution:
    """How pixels are given their share of an output: by Integrated Gradients, or otherwise.

    method:      how: integrated-gradients; gradient, with its sign; gradient-x-input; smoothgrad,
                 the mean gradient at noisy images; expected-gradients, on the way from other images
                 of the dataset; random, to compare with; maps, attributions that lie ready in a
                 folder; or a function of your own, which is given network, images and classes and
                 returns attributions shaped as the images
    of:          what is attributed: the target's softmax probability or its logit
    target:      the class whose output is attributed
    baseline:    start of the path: black, white, mean, blur, uniform (noise), an image file, or
                 module:callable
    blur_sigma:  of baseline blur: standard deviation of the Gaussian, in pixels
    n_baselines: of baseline uniform: noise images averaged over
    rule:        quadrature of the path integral: the same steps on every path; adaptive: more
                 where f changes, as 16 forward passes tell, and masks as good from half of them
    n_steps:     steps m: the gradients taken on each path; auto: 25 (adaptive: 17), doubled for
                 each image until tolerance and agreement are reached
    skip:        leave out steps where the softmax's slope p (1 - p) is less than this, such as
                 0.0001, and take them after all where an image then lacks more than 20 % of
                 completeness; by default all steps are taken. For a fixed rule and number of steps
    tolerance:   of n_steps auto: largest error of completeness, relative to f(x) − f(b)
    agreement:   of n_steps auto: least intersection over union of an image's masks (the top 50 %)
                 before and after the last doubling
    most_steps:  of n_steps auto: no image gets more
    precision:   of the network behind its affine stem; sums are fp32 always, and tf32 needs a GPU
    n_samples:   of smoothgrad and expected-gradients: gradients averaged over, one at each noisy
                 image, or on the way from another image
    noise:       of smoothgrad: standard deviation, 1 being white
    maps:        of maps: the folder, for {model} of each network its own; a .npy file for each
                 image, of its name: an attribution of its prepared pixels, or one number a square
    """

    method: str = setting(
        "integrated-gradients",
        choices=(INTEGRATED, "gradient", "gradient-x-input", *SAMPLED, "random", "maps"),
        own=True,
        counts=lambda group: not group.is_integrated,
    )
    of: str = setting("probability", choices=("probability", "logit"))
    target: str = setting("predicted", choices=("predicted", "label"))
    baseline: str = "black"
    blur_sigma: float = setting(
        10,
        counts=lambda group: group.baseline == "blur" or is_own(group.baseline),
        exclusiveMinimum=0,
    )
    n_baselines: int = setting(10, counts=lambda group: is_random(group.baseline), minimum=1)
    rule: str = setting(
        "right",
        choices=("right", "left", "middle", "trapezoid", "gauss-legendre", "adaptive"),
        counts=lambda group: group.is_integrated,
    )
    n_steps: int | str = setting(
        50,
        counts=lambda group: group.is_integrated,
        minimum=1,
        pattern="^auto$",
        allowed="auto",
    )
    skip: float | None = setting(
        None,
        counts=lambda group: group.is_integrated and group.skip is not None,
        exclusiveMinimum=0,
        maximum=0.25,
    )
    tolerance: float = setting(0.05, counts=lambda group: group.is_auto, exclusiveMinimum=0)
    agreement: float = setting(
        0.95, counts=lambda group: group.is_auto, exclusiveMinimum=0, maximum=1
    )
    most_steps: int = setting(800, counts=lambda group: group.is_auto, minimum=50)
    precision: str = setting(
        "fp32",
        choices=("fp32", "tf32", "bf16", "fp16"),
        counts=lambda group: group.is_integrated,
    )
    n_samples: int = setting(50, counts=lambda group: group.method in SAMPLED, minimum=1)
    noise: float = setting(
        0.15, counts=lambda group: group.method == "smoothgrad", exclusiveMinimum=0
    )
    maps: str | None = setting(None, counts=lambda group: group.method == "maps")

    @property
    def is_integrated(self) -> bool:
        """Whether the method goes along paths, in steps."""
        return self.method == INTEGRATED

    @property
    def is_drawn(self) -> bool:
        """Whether the study's seed has a part in it."""
        return self.method in (*SAMPLED, "random") or is_random(self.baseline)

    @property
    def is_auto(self) -> bool:
        """Whether the number of steps is found for each image."""
        return self.is_integrated and self.n_steps == "auto"


@dataclass(frozen=True)
class Figures:
    """The pictures.

    n_images:  rows of example images
    n_gallery: images of each model on the page of the study, results/index.html
    formats:   of the files of figures; pdf and svg have their fonts within
    """

    n_images: int = setting(6, minimum=1, maximum=20)
    n_gallery: int = setting(60, minimum=1, maximum=1000)
    formats: tuple[str, ...] = setting(
        ("png",), choices=("png", "pdf", "svg"), minItems=1, uniqueItems=True
    )


@dataclass(frozen=True)
class Compute:
    """How it is computed.

    device:     where networks run: auto (a GPU if there is one), cpu, cuda, cuda:1
    batch_size: images, or (image, step) pairs, a forward pass; none: from the network and the free
                memory
    engine:     how attribution runs the network: as it is, by torch.compile, or from a CUDA graph
    shards:     parts the dataset is cut into, each prepared and attributed by a job of its own
    threads:    CPU threads a job computes with
    """

    device: str = setting(
        "auto",
        pattern="^(auto|cpu|cuda(:[0-9]+)?)$",
        allowed="auto, cpu, cuda or a GPU by its number, cuda:1",
    )
    batch_size: int | None = setting(None, minimum=1)
    engine: str = setting("eager", choices=("eager", "compile", "cudagraph"))
    shards: int = setting(1, minimum=1)
    threads: int = setting(1, minimum=1)


@dataclass(frozen=True)
class Study:
    """A whole configuration, valid and complete.

    dataset:     the images and their labels
    models:      the networks, by the names they have in the tables
    attribution: Integrated Gradients
    squares:     the components that are kept or dropped
    selection:   which squares hold the top p %
    masking:     what is masked, and how
    curves:      masked by area
    statistics:  how differences are judged
    readings:    other ways to do all this, compared by `snakemake readings`
    figures:     the pictures
    compute:     how it is computed; changes no table beyond rounding and re-runs nothing, the
                 number of shards aside
    seed:        of everything drawn at random: demo images, training, noise baselines, random
                 squares
    """

    dataset: Dataset
    models: dict[str, Model] = setting(minProperties=1, propertyNames=_NAME)
    attribution: Attribution = Attribution()
    squares: Squares = Squares()
    selection: Selection = Selection()
    masking: Masking = Masking()
    curves: Curves = Curves()
    statistics: Statistics = Statistics()
    readings: Readings = Readings()
    figures: Figures = Figures()
    compute: Compute = Compute()
    seed: int = setting(0, minimum=0)


def is_random(baseline: str) -> bool:
    """Return whether a baseline depends on the study's seed, as one of the user's own may."""
    return baseline == "uniform" or is_own(baseline)


def is_baseline_file(baseline: str) -> bool:
    """Return whether a baseline is an image file, neither named nor a function."""
    return baseline not in BASELINES and not is_own(baseline)


def baseline_files(baseline: str) -> list[str]:
    """Return the image file that a baseline is, or none."""
    return [baseline] if is_baseline_file(baseline) else []


@cache
def schema() -> dict[str, Any]:
    """Return the JSON schema of config.yaml."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "igmask study"}
    return head | json_schema(Study)


def rules(*path: str) -> dict[str, Any]:
    """Return the JSON schema of a key, such as ("attribution", "n_steps"), or of a group."""
    found = schema()
    for name in path:
        found = found["additionalProperties"] if name == "*" else found["properties"][name]
    return found


def percent(p: float) -> str:
    """Return p as file names and tables have it: 50, 12.5."""
    return f"{p:g}"
