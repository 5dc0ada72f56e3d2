"""A user's own `module:callable`, which returns a network."""

from torch import nn

from igmask.asked.settings import Model
from igmask.errors import InputError, refusing, with_kind
from igmask.inputs.own import MISTAKES, imported


def described(model: Model) -> Model:
    """Return the model as it is; raise InputError if there is no such function.

    It is not looked for where nothing else is lacking: a look ahead need not import it.
    """
    if model.size is None:
        imported(model.source)
    return model


def build(model: Model) -> nn.Module:
    """Return what the function returns, or InputError that says what is wrong with it."""
    function = imported(model.source)
    what = f"{model.source} with arguments {model.arguments}"
    with refusing(*MISTAKES, says=lambda error: f"{what}: {with_kind(error)}"):
        network = function(**model.arguments)
    if not isinstance(network, nn.Module):
        raise InputError(f"{model.source} returned {type(network).__name__}, not a torch.nn.Module")
    return network
