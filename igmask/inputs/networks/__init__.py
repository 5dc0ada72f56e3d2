"""Where networks come from: a file a library, and its entry in `LIBRARIES`.

Another one is a file with the functions of a `Library`, an entry here, and its name in
`asked.settings.LIBRARIES`.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from igmask.asked.settings import Model
from igmask.inputs.networks import function, hf, timm_, torchvision_


class Library(NamedTuple):
    """How networks are described and built.

    described:   model → the model with what is not said of its input filled in, as the library has
                 it; raises InputError for a name that it does not have
    build:       model → the network, with the library's weights if the model names them, or names
                 none of a library whose networks have theirs by name
    class_names: model → the names of the classes of the library's weights, or none
    usual_size:  model → the side of the input that such a network usually takes, in pixels
    """

    described: Callable[[Model], Model]
    build: Callable[[Model], nn.Module]
    class_names: Callable[[Model], list[str]]
    usual_size: Callable[[Model], int]


LIBRARIES = {
    "torchvision": Library(
        torchvision_.described,
        torchvision_.build,
        torchvision_.class_names,
        torchvision_.usual_size,
    ),
    "timm": Library(timm_.described, timm_.build, timm_.class_names, timm_.usual_size),
    "hf": Library(hf.described, hf.build, hf.class_names, hf.usual_size),
    "": Library(function.described, function.build, lambda model: [], lambda model: 224),
}


def library_of(model: Model) -> Library:
    """Return the library of a model's source, or what stands for one of `module:callable`."""
    return LIBRARIES[model.library]
