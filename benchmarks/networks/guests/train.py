"""Trains a network for some minutes and writes its state dict. Runs in the benchmark's environment, as a script.

The aim is a network whose F1 can lose something, not a good one: turned and flipped tiles, AdamW with one cycle, cross
entropy plus Dice loss of change.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator

import forward
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

BATCH = 8  # pairs
WITH_CHANGE = 0.75  # of a batch; change is rare
LEARNING_RATE = 1e-3
EDGE = 2  # pixels; class 1 of three classes is the edge of a change, class 2 its interior
PRINT_EVERY = 20  # steps


def batches(asked: forward.Request) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields normalised images (B, 2, C, H, W) and labels (B, H, W)."""
    random = np.random.default_rng(0)
    pairs = forward.read_pairs(asked["tiles"])
    changed = np.array([label.mean() > 0.01 for *_, label in pairs])
    weights = np.where(changed, WITH_CHANGE / max(1, changed.sum()), (1 - WITH_CHANGE) / max(1, (~changed).sum()))
    while True:
        images, labels = [], []
        for index in random.choice(len(pairs), BATCH, p=weights / weights.sum()):
            turns, flip = random.integers(4), random.integers(2)
            before, after, label = (np.rot90(part[:, ::-1] if flip else part, turns) for part in pairs[index])
            images.append(np.stack([before, after]).transpose(0, 3, 1, 2))
            labels.append(label)
        yield forward.normalised(asked, np.stack(images).astype(np.float32)), torch.from_numpy(np.stack(labels))


def loss_of(output: Tensor, changed: Tensor, kind: str) -> Tensor:
    probability = forward.probability_of(output, kind).clamp(1e-6, 1 - 1e-6)
    target = changed.float()
    dice = 1 - (2 * (probability * target).sum() + 1) / (probability.sum() + target.sum() + 1)
    if kind.startswith("classes"):
        interior = -F.max_pool2d(-target[:, None], 2 * EDGE + 1, 1, EDGE)[:, 0]
        return dice + F.cross_entropy(output, (target + interior).long())
    return dice + F.binary_cross_entropy(probability, target)


def train(network: nn.Module, asked: forward.Request) -> int:
    """Trains until the time or the steps are used up; returns the number of steps."""
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=1e-2)
    network.train()
    drawn, step, start = batches(asked), 0, time.monotonic()
    while step < asked["steps"]:
        done = max(step / asked["steps"], (time.monotonic() - start) / (60 * asked["minutes"]))
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, 20 * done + 0.05) * (1 + np.cos(np.pi * done)) / 2
        images, changed = next(drawn)
        loss = loss_of(forward.run(network, asked, images), changed, asked["output"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step % PRINT_EVERY == 0:
            print(f"step {step}, {100 * done:.0f} %, loss {loss.item():.3f}", file=sys.stderr, flush=True)
    return step


def main() -> None:
    asked = forward.request()
    network = forward.make(asked["factory"])
    steps = train(network, asked)
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, asked["weights"])
    parameters = sum(value.numel() for value in network.parameters())
    print(json.dumps({"steps": steps, "parameters": parameters}))


if __name__ == "__main__":
    main()
