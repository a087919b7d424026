"""Small tables of made-up impressions, whose click probabilities are known."""

import os

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from torch import distributed as dist
from torch import nn

from workingpapers.methods.recommenders.schema import Rows
from workingpapers.methods.recommenders.training import Plan, train


def impressions(n=2000, seed=0, users=30, items=40):
    """Return a table and labels: clicks follow user and item tastes, the genre and a number."""
    rng = np.random.default_rng(seed)
    taste = np.random.default_rng(99)
    user, item = rng.integers(users, size=n), rng.integers(items, size=n)
    genres = [[f"g{g}" for g in sorted(set(taste.integers(6, size=2)))] for _ in range(items)]
    number = rng.normal(size=n)
    u, v = taste.normal(size=(users, 3)), taste.normal(size=(items, 3))
    logit = (u[user] * v[item]).sum(1) + 0.5 * number
    table = pd.DataFrame(
        {
            "user": [f"u{i}" for i in user],
            "item": item,
            "genres": ["|".join(genres[i]) for i in item],
            "number": number,
        }
    )
    return table, (rng.random(n) < 1 / (1 + np.exp(-logit))).astype(int)


KINDS = {"genres": "multi"}


class Logistic(nn.Module):
    """Logistic regression on the numbers of rows."""

    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(width, 1)

    def forward(self, rows):
        return self.layer(rows.numbers).squeeze(1)


class Normalised(Logistic):
    """The same on numbers that are normalised by the batch."""

    def __init__(self, width):
        super().__init__(width)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, rows):
        return self.layer(self.norm(rows.numbers)).squeeze(1)


def numeric(n=400, seed=0):
    """Rows of three numbers, and labels that follow them."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 3)).astype(np.float32)
    y = (rng.random(n) < 1 / (1 + np.exp(-X @ [1.0, -1.0, 0.5]))).astype(int)
    return Rows(torch.zeros(n, 0, dtype=torch.int32), torch.from_numpy(X), {}), torch.from_numpy(y)


def train_share(kind=Logistic):
    """What each of several processes does when one training is spread over them, and how many there are."""
    if dist.is_initialized():  # what torchrun tells a process
        rank, size = str(dist.get_rank()), str(dist.get_world_size())
        os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    rows, y = numeric()
    torch.manual_seed(0)
    model = kind(3)
    train(model, rows, y, Plan(learning_rate=0.02, batch_size=100, max_epochs=3), seed=7)
    weights = {name: value.detach().clone().cpu() for name, value in model.state_dict().items()}
    return weights, PartialState().num_processes
