"""What the records say of an image: a metric is a function of what the network says of it.

Another one is an entry of `METRICS`; records change with it, so raise `STAGES["evaluate"]`.
"""

from collections.abc import Callable

from torch import Tensor

# Of probabilities (N, n_classes), the labels (N,), and the classes predicted for the original
# images (N,), all on the CPU: (N,) numbers, a column of the records.
Metric = Callable[[Tensor, Tensor, Tensor], Tensor]

METRICS: dict[str, Metric] = {
    "predicted": lambda probabilities, label, original: probabilities.argmax(dim=1),
    "correct": lambda probabilities, label, original: probabilities.argmax(dim=1) == label,
    "probability_predicted": lambda probabilities, label, original: probabilities.amax(dim=1),
    "probability_label": lambda probabilities, label, original: _of(probabilities, label),
    "probability_original": lambda probabilities, label, original: _of(probabilities, original),
}


def _of(probabilities: Tensor, classes: Tensor) -> Tensor:
    return probabilities.gather(1, classes.unsqueeze(1)).squeeze(1)
