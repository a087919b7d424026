"""Compare how the weights of a click model may start, by AUC on validation rows.

    python benchmarks/recommenders/starts.py [--data flights] [--only DCN-V2] [--seeds 3]

Rows, learning rates and epochs as in `peers_tuned.py`: Adam at three rates, each for as long as it helps on the rows
held out. Told is each start's AUC there at its best rate, and its gain over the first start in the list, seeds being
paired, with the standard error. AutoInt draws its layers in its own way; its vectors alone differ. Of `fresh` data,
made-up ones of another seed, 150,000 further rows are scored by the epoch that the held-out rows choose: the one case
in which an AUC is sharp to .001. Rows held back for testing are not looked at.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peers import BATCH, OURS, Data, columns, data, encoded, histories
from peers_tuned import EPOCHS, PATIENCE, RATES, parted
from torch import Tensor, nn

from workingpapers.methods.recommenders.baselines import MLPClickClassifier
from workingpapers.methods.recommenders.metrics import auc
from workingpapers.methods.recommenders.training import Plan, predict, train

MODELS = {"MLP": MLPClickClassifier(dim=16, hidden=(128, 64))} | {name: OURS[name] for name in OURS if name != "FGCNN"}
Start = tuple[Callable[[Tensor], Any] | None, float]
# By name: how the weights of linear layers are drawn, None as torch does, and the deviation of vectors.
STARTS: dict[str, Start] = {
    "torch, 0.01": (None, 0.01),
    "Glorot, 0.0001": (nn.init.xavier_normal_, 0.0001),
    "He, 0.01": (nn.init.kaiming_normal_, 0.01),
    "He, 0.001": (nn.init.kaiming_normal_, 0.001),
    "He, 0.0001": (nn.init.kaiming_normal_, 0.0001),
}
OWN: dict[str, Start] = {f"own, {scale}": (nn.Identity(), scale) for scale in (0.01, 0.001, 0.0001)}
FRESH, TRAINED, VALID = 150_000, 36_450, 4_050  # rows


def parts(name: str, source: str, rows: int) -> tuple[Data, Data]:
    """Return rows to train a model on and to choose by, and the same with the rows that count."""
    if source != "fresh":
        part = parted(data(name, source, rows), source)
        return part, part
    table, labels = (histories if name == "DIN" else columns)(TRAINED + VALID + FRESH, seed=1)
    part = encoded(table[: TRAINED + VALID], labels[: TRAINED + VALID], np.arange(TRAINED + VALID) >= TRAINED)
    return part, replace(part, held=part.schema.encode(table[-FRESH:]), held_labels=labels[-FRESH:])


def drawn(network: nn.Module, draw: Callable[[Tensor], Any] | None, scale: float) -> None:
    """Draw the weights of linear layers anew, by None as torch does, else with biases 0; and vectors of a deviation."""
    for module in network.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=scale)
        elif isinstance(module, nn.Linear) and draw is None:
            module.reset_parameters()
        elif isinstance(module, nn.Linear) and draw:
            draw(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def reached(name: str, start: Start, rate: float, seed: int, part: Data, counted: Data) -> tuple[float, float]:
    """Return the AUC on the rows to choose by, and on those that count."""
    torch.manual_seed(seed)
    model = MODELS[name]._build(part.schema)
    drawn(model, *start)
    plan = Plan(learning_rate=rate, batch_size=BATCH, max_epochs=EPOCHS, patience=PATIENCE)
    valid = part.held, torch.from_numpy(part.held_labels)
    chosen = max(train(model, part.rows, part.labels, plan, valid=valid, seed=seed).auc)
    return chosen, chosen if counted is part else auc(counted.held_labels, predict(model, counted.held))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("made-up", "movielens", "flights", "fresh"), default="made-up")
    parser.add_argument("--rows", type=int, default=54_000, help="of made-up data")
    parser.add_argument("--seeds", type=int, default=3, help="how many, 2 or more")
    parser.add_argument("--only", choices=MODELS, help="one model")
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable()
    print(f"{'model':8} {'start':16} {'rate':>7} {'AUC':>7} {'gain':>8}")
    for name in [given.only] if given.only else MODELS:
        if (name, given.data) == ("DIN", "flights"):
            print("DIN needs histories, which flights do not have.")
            continue
        part, counted = parts(name, given.data, given.rows)
        usual: NDArray[np.float64] | None = None
        for called, start in (OWN if name == "AutoInt" else STARTS).items():
            runs = {r: [reached(name, start, r, s, part, counted) for s in range(given.seeds)] for r in RATES}
            rate = max(RATES, key=lambda r: np.mean([chosen for chosen, _ in runs[r]]))
            found = np.array([told for _, told in runs[rate]])
            usual = found if usual is None else usual
            error = (found - usual).std(ddof=1) / given.seeds**0.5
            gain = f"{(found - usual).mean():+8.4f} +- {error:.4f}"
            print(f"{name:8} {called:16} {rate:7} {found.mean():7.4f} {gain}", flush=True)


if __name__ == "__main__":
    main()
