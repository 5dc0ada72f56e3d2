"""Training for the demo: a small classifier, a processor, some seconds.

AdamW on a one-cycle schedule (Smith and Topin 2017, "Super-Convergence") and random horizontal
flips; no validation, no checkpoints. For networks that matter, load weights instead.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from igmask.asked.recipes import Train, made_by, stamp
from igmask.errors import InputError, refusing
from igmask.inputs import models
from igmask.inputs.sources import demo
from igmask.inputs.weights import write_weights
from igmask.progress import Meter, progress


def fit(
    model: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    on_batch: Callable[[float, float], None] | None = None,
) -> nn.Module:
    """Return the model itself, trained in place on its own device, in evaluation mode.

    model: takes pixels in [0, 1], (N, 3, H, W) float32
    images: (N, H, W, 3) uint8
    labels: (N,) integers
    learning_rate: the peak of the schedule
    seed: of the order, the flips and dropout; the global generators are left as they were, and
          the first weights are the caller's
    on_batch: called after each step with the batch's loss and accuracy
    raises ValueError, if there is not one label an image and at least one batch;
           FloatingPointError, if the loss is no longer finite
    """
    if len(images) != len(labels) or len(images) < batch_size:
        raise ValueError(
            f"train: expected one label an image and at least one batch of {batch_size}, "
            f"got {len(images)} images and {len(labels)} labels"
        )
    device = next(model.parameters()).device
    # Rows of RGB pixels are what channels-last means: the batches have that layout without a copy.
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    classes = torch.from_numpy(np.asarray(labels, dtype=np.int64))
    n_batches = len(images) // batch_size
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, epochs * n_batches)
    chance = torch.Generator().manual_seed(seed)

    model.train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for epoch in range(epochs):
            order = torch.randperm(len(images), generator=chance)[: n_batches * batch_size]
            for batch in order.view(n_batches, batch_size):
                x = _flipped(pixels[batch], chance).to(device).float() / 255
                y = classes[batch].to(device)
                logits = model(x)
                loss = nn.functional.cross_entropy(logits, y)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                if not torch.isfinite(loss):
                    raise FloatingPointError(
                        f"train: the loss became {loss.item()} in epoch {epoch + 1}; "
                        f"lower the learning rate ({learning_rate})"
                    )
                if on_batch:
                    on_batch(loss.item(), (logits.argmax(1) == y).float().mean().item())
    return model.eval()


def train(output: Path, recipe: Train) -> None:
    """Train a model on the demo's drawn images and write its state dict as safetensors.

    recipe: its model has `train`, and its initial weights are drawn from the seed
    raises  InputError if it has no `train`, or if training diverges
    """
    recipe = replace(recipe, model=models.complete(recipe.model))
    model, n_train, seed = recipe.model, recipe.n_train, recipe.seed
    if model.train is None:
        raise InputError("this model has no `train`: its weights are given, not trained")
    torch.set_num_threads(1)  # sums, and so the weights, would depend on the number of threads
    network = models.build(model, seed=seed)
    draw = progress(range(n_train), total=n_train, unit="images", label="draw")
    images = np.stack([demo.draw(i, split="train", seed=seed) for i in draw])
    labels = np.array([demo.label_of(i) for i in range(n_train)])
    n_steps = model.train.epochs * (n_train // model.train.batch_size)
    meter = Meter(total=n_steps, unit="steps", label="train")
    whole = models.with_input(network, model).to(memory_format=torch.channels_last)
    how = vars(model.train) | {"seed": seed, "on_batch": lambda loss, accuracy: meter.advance()}
    with refusing(FloatingPointError, ValueError):
        fit(whole, images, labels, **how)
    write_weights(output, network, stamp("train") | made_by(recipe))


def _flipped(x: torch.Tensor, chance: torch.Generator) -> torch.Tensor:
    """Each image of (N, C, H, W), or its mirror image, with equal chance."""
    flip = torch.rand(len(x), generator=chance) < 0.5
    return torch.where(flip[:, None, None, None], x.flip(3), x)
