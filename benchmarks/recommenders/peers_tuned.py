"""Compare the AUC of the click models of `peers.py` with the peers', each library tuned in the same way.

    PYTHONPATH=peers python benchmarks/recommenders/peers_tuned.py --zoo FuxiCTR/model_zoo [--data flights] [--seeds 5]

After two epochs a library that starts from smaller weights, or learns faster, is only elsewhere on its way. So each one
gets the learning rate and the epoch that suit it. Held out to choose by is the last tenth of the rows to train on: of
each person's for films, in time for flights. Adam at 0.0005, 0.001 and 0.002, without regularisation, trains for at
most eight epochs, and no longer than two past the best validation AUC, whose weights are kept. The rate is that with
the best mean of these AUCs over the first seeds (`--tuning`), and is used for all. The table tells what the rows that
are held back for testing then say: the mean AUC, and ours less the peer's, seeds being paired, with its 95 % interval
by Student's t: how training varies, not how another draw of test rows would. Each run's result lies in a file of
`--results`, so that a call goes on where the last one ended.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import logging
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from peers import BATCH, OURS, Data, Maker, data, libraries
from scipy import stats

from workingpapers.methods.recommenders.metrics import auc
from workingpapers.methods.recommenders.training import Plan, train

RATES, EPOCHS, PATIENCE, SHARE = (5e-4, 1e-3, 2e-3), 8, 2, 0.1


def parted(found: Data, source: str) -> Data:
    """Return the same rows to train on without their last tenth, which is held out instead."""
    names = [field.name for field in found.schema.of_kind("categorical")]
    who = pd.Series(found.rows.ids[:, names.index("user")] if source == "movielens" else np.zeros(len(found.rows)))
    late = (who.groupby(who).cumcount() >= (1 - SHARE) * who.groupby(who).transform("size")).to_numpy()
    kept, held = (torch.from_numpy(np.flatnonzero(part)) for part in (~late, late))
    rows, labels = found.rows, found.labels
    return replace(found, rows=rows[kept], labels=labels[kept], held=rows[held], held_labels=labels[held].numpy())


def run(library: str, make: Maker, name: str, part: Data, test: Data, seed: int, rate: float) -> dict[str, Any]:
    """Return the validation AUC of each epoch, and the test AUC of the best one."""
    torch.manual_seed(seed)
    learner = make(name, part, seed, rate)
    reached: list[float] = []
    if library == "workingpapers":
        plan = Plan(learning_rate=rate, batch_size=BATCH, max_epochs=EPOCHS, patience=PATIENCE)
        valid = part.held, torch.from_numpy(part.held_labels)
        reached = train(learner.network, part.rows, part.labels, plan, valid=valid, seed=seed).auc
    else:  # the same by hand
        while len(reached) < EPOCHS and len(reached) - int(np.argmax([*reached, 0])) <= PATIENCE:
            learner.fit(1)
            reached.append(auc(part.held_labels, learner.scores(part.held)))
            if reached[-1] > max(reached[:-1], default=0):
                kept = copy.deepcopy(learner.network.state_dict())
        learner.network.load_state_dict(kept)
    return {"valid": reached, "test": auc(test.held_labels, learner.scores(test.held))}


class Runs:
    """Runs of one model on one kind of data, each done once.

    Args:
        name: of the model; source: of the data; found: the data.
        makers: of models, by library.
        folder: of results.
    """

    def __init__(self, name: str, source: str, found: Data, makers: dict[str, Maker], folder: Path) -> None:
        self.name, self.source, self.found, self.part = name, source, found, parted(found, source)
        self.makers, self.folder = makers, folder

    def get(self, library: str, seed: int, rate: float) -> dict[str, Any]:
        """Return what `run` does."""
        file = self.folder / f"{self.source} {len(self.found.rows)} {self.name} {library} {rate} {seed}.json"
        if not file.exists():
            with contextlib.redirect_stdout(io.StringIO()):
                made = run(library, self.makers[library], self.name, self.part, self.found, seed, rate)
            file.write_text(json.dumps(made), encoding="utf-8")
        done: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return done

    def rate(self, library: str, seeds: int) -> float:
        """Return the learning rate with the best mean validation AUC over some seeds."""
        return max(RATES, key=lambda rate: np.mean([max(self.get(library, i, rate)["valid"]) for i in range(seeds)]))

    def show(self, seeds: int, tuning: int) -> None:
        """Print a line for each library: rate, mean best epoch, AUCs, and ours less the library's."""
        rates = {library: self.rate(library, tuning) for library in self.makers}
        done = {lib: [self.get(lib, seed, rate) for seed in range(seeds)] for lib, rate in rates.items()}
        tests = {library: np.array([one["test"] for one in runs]) for library, runs in done.items()}
        for library, runs in done.items():
            epochs = np.mean([np.argmax(one["valid"]) + 1 for one in runs])
            valid = np.mean([max(one["valid"]) for one in runs])
            line = f"{self.name:8} {library:14} {rates[library]:7} {epochs:6.1f} {valid:8.4f}"
            line += f" {tests[library].mean():8.4f} +- {tests[library].std(ddof=1):.4f}"
            if library != "workingpapers":
                gain = tests["workingpapers"] - tests[library]
                line += f" {gain.mean():+8.4f} +- {stats.t.ppf(0.975, seeds - 1) * stats.sem(gain):.4f}"
            print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("made-up", "movielens", "flights"), default="made-up")
    parser.add_argument("--rows", type=int, default=54_000, help="of made-up data")
    parser.add_argument("--seeds", type=int, default=5, help="how many, 2 or more")
    parser.add_argument("--tuning", type=int, default=2, help="of how many the learning rate is chosen by")
    parser.add_argument("--zoo", type=Path, help="the folder model_zoo of a clone of FuxiCTR")
    parser.add_argument("--only", choices=OURS, help="one model")
    parser.add_argument("--results", type=Path, default=Path("peers-tuned"), help="the folder of results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable()
    given.results.mkdir(parents=True, exist_ok=True)
    print(f"{'model':8} {'library':14} {'rate':>7} {'epochs':>6} {'valid':>8} {'test':>8} {'':9} {'ours less it':>15}")
    for name in [given.only] if given.only else OURS:
        if (name, given.data) == ("DIN", "flights"):
            print("DIN needs histories, which flights do not have.")
            continue
        with tempfile.TemporaryDirectory() as folder:
            makers = libraries(given.zoo, Path(folder))
            if name == "FGCNN":
                makers.pop("DeepCTR-Torch", None)  # it has none
            runs = Runs(name, given.data, data(name, given.data, given.rows), makers, given.results)
            runs.show(given.seeds, given.tuning)


if __name__ == "__main__":
    main()
