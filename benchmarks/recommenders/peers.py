"""Train the same click models here, in DeepCTR-Torch and in FuxiCTR, on the same rows: rows per second, AUC, equality.

    pip install --no-deps --target peers deepctr-torch fuxictr h5py polars polars-runtime-32
    git clone https://github.com/reczoo/FuxiCTR        # its models, which its package leaves out
    PYTHONPATH=peers python benchmarks/recommenders/peers.py --zoo FuxiCTR/model_zoo [--data flights] [--seeds 3]

A peer that is absent is left out, and said to be. First it shows by how much layers differ that are defined alike,
weights copied across. Then all train with Adam at 0.001 on batches of 1,024 for two epochs without regularisation, from
the same ids, with vectors of 16 numbers and networks of 128 and 64 units; the peers through `fit` and `train_epoch` of
their own. DIN has Dice in both networks, as in its paper; the peers' options put it into the attention alone. With
several seeds, of the weights and of the order of the rows, the libraries take turns, and each one's fastest run and
mean AUC are told. Made-up data have 24 columns whose values follow a power law, and clicks that follow hidden tastes
and their products; for DIN a history of up to 20 items beside four columns. Films and flights are those of the task
`ctr`, with its held-back rows, every column a category; only films have a history.

Where definitions differ: DeepCTR-Torch's AutoInt starts from smaller weights, and FuxiCTR's adds a layer's input
unchanged where widths agree. FuxiCTR pools uneven numbers of fields from other places, and clips gradients.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import io
import logging
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from workingpapers.data.impressions import load_impressions
from workingpapers.methods.recommenders import crossing
from workingpapers.methods.recommenders.autoint import AutoIntClassifier, InteractingLayer
from workingpapers.methods.recommenders.baselines import FM, IPNN, CrossNetwork, DCNClassifier, DeepFMClassifier
from workingpapers.methods.recommenders.din import DINClassifier, LocalActivationUnit
from workingpapers.methods.recommenders.estimator import ClickClassifier
from workingpapers.methods.recommenders.fgcnn import FeatureGenerator, FGCNNClassifier
from workingpapers.methods.recommenders.metrics import auc
from workingpapers.methods.recommenders.schema import Rows, Schema
from workingpapers.methods.recommenders.training import Plan, predict, train

DIM, HIDDEN, BATCH, EPOCHS, RATE = 16, (128, 64), 1024, 2, 1e-3
COLUMNS, LEAST, MOST, STEPS = 24, 10, 20_000, 20
CHANNELS = (14, 16, 18, 20)
# AutoInt's layers are as wide as the vectors, for DeepCTR's cannot be otherwise.
OURS: dict[str, ClickClassifier] = {
    "DeepFM": DeepFMClassifier(dim=DIM, hidden=HIDDEN),
    "DCN-V2": DCNClassifier(dim=DIM, hidden=HIDDEN),
    "AutoInt": AutoIntClassifier(dim=DIM, layers=3, width=DIM, heads=2),
    "FGCNN": FGCNNClassifier(dim=DIM, hidden=HIDDEN, channels=CHANNELS, kernel=7, new_maps=3),
    "DIN": DINClassifier(dim=DIM, hidden=HIDDEN, attention_hidden=(80, 40), activation="dice"),
}


@dataclass(frozen=True)
class Data:
    """Encoded rows to train and to test on, and their labels."""

    schema: Schema
    rows: Rows
    labels: Tensor
    held: Rows
    held_labels: NDArray[np.int64]


def power_law(rng: np.random.Generator, values: int, rows: int) -> NDArray[np.int64]:
    """Return ids below `values`, the k-th of which is drawn about as often as 1 / k."""
    drawn = np.exp(rng.random(rows) * np.log(values + 1)) - 1
    found: NDArray[np.int64] = np.minimum(drawn, values - 1).astype(np.int64)
    return found


def clicks(rng: np.random.Generator, logit: NDArray[np.float64]) -> NDArray[np.int64]:
    clicked: NDArray[np.bool_] = rng.random(len(logit)) < 1 / (1 + np.exp(-logit + logit.mean()))
    return clicked.astype(np.int64)


def columns(rows: int, seed: int = 0) -> tuple[pd.DataFrame, NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    sizes = np.geomspace(LEAST, MOST, COLUMNS).astype(int)
    table = {f"c{i}": power_law(rng, n, rows) for i, n in enumerate(sizes)}
    vectors = [rng.normal(size=(n, 4))[table[f"c{i}"]] for i, n in enumerate(sizes)]
    logit = sum((a * b).sum(axis=1) for a, b in zip(vectors[::2], vectors[1::2], strict=True))
    return pd.DataFrame(table), clicks(rng, 0.3 * (np.asarray(logit) + sum(v[:, 0] for v in vectors)))


def histories(rows: int, seed: int = 0) -> tuple[pd.DataFrame, NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({name: power_law(rng, n, rows) for name, n in (("user", 5000), ("shop", 500), ("hour", 24))})
    table["item"], past = power_law(rng, 5000, rows), power_law(rng, 5000, rows * STEPS).reshape(rows, STEPS)
    length, kind = rng.integers(1, STEPS + 1, rows), rng.integers(8, size=5000)
    alike = (kind[past] == kind[table["item"]][:, None]) & (np.arange(STEPS) < length[:, None])
    table["past"] = [list(row[:n]) for row, n in zip(past, length, strict=True)]
    return table, clicks(rng, alike.sum(axis=1) * 0.8 + rng.normal(size=5000)[table["item"]])


def data(name: str, source: str, rows: int) -> Data:
    """Return what to train on and what to test on; of made-up data the last quarter."""
    if source == "made-up":
        table, labels = histories(rows) if name == "DIN" else columns(rows)
        held = np.arange(rows) >= rows * 3 // 4
    else:
        found = load_impressions(source)
        table, labels, held = found.table, found.clicks, np.asarray(found.held)
        table = table.rename(columns={"film": "item", "liked_films": "past"})
    if name != "DIN":
        table = table.drop(columns="past", errors="ignore")
    return encoded(table, labels, held)


def encoded(table: pd.DataFrame, labels: NDArray[np.int64], held: NDArray[np.bool_]) -> Data:
    """Return rows as ids, by the vocabularies of those that are not held back."""
    kinds = {str(column): "sequence of item" if column == "past" else "categorical" for column in table}
    schema = Schema.fit([table[~held]], kinds=kinds, length=STEPS)
    ids = schema.encode(table)
    train, test = (torch.from_numpy(np.flatnonzero(part)) for part in (~held, held))
    return Data(schema, ids[train], torch.from_numpy(labels[~held]), ids[test], labels[held])


@dataclass(frozen=True)
class Learner:
    """A library's model: the network, what trains it for some epochs, and what scores rows."""

    network: nn.Module
    fit: Callable[[int], None]
    scores: Callable[[Rows], NDArray[Any]]


Maker = Callable[[str, Data, int, float], Learner]  # of a model's name, data, a seed and Adam's learning rate


def ours(name: str, data: Data, seed: int, rate: float) -> Learner:
    model = OURS[name]._build(data.schema)

    def fit(epochs: int) -> None:
        train(model, data.rows, data.labels, Plan(learning_rate=rate, batch_size=BATCH, max_epochs=epochs), seed=seed)

    return Learner(model, fit, lambda rows: predict(model, rows))


def void(_: object) -> None:
    """Return nothing."""


def arrays(rows: Rows) -> dict[str, NDArray[Any]]:
    """Return the ids of rows by what peers call their columns: c0, c1, ... and past."""
    made = {f"c{i}": column for i, column in enumerate(rows.ids.numpy().T)}
    return made | {name: ids.numpy() for name, ids in rows.lists.items()}


def deepctr(name: str, data: Data, seed: int, rate: float) -> Learner:
    inputs, models = (importlib.import_module(f"deepctr_torch.{part}") for part in ("inputs", "models"))
    item = [f.name for f in data.schema.of_kind("categorical")].index("item") if name == "DIN" else -1
    fields = [
        inputs.SparseFeat(f"c{i}", f.size, embedding_dim=DIM) for i, f in enumerate(data.schema.of_kind("categorical"))
    ]
    none = {"l2_reg_embedding": 0, "init_std": 0.01, "seed": seed}
    if name == "DeepFM":
        model = models.DeepFM(fields, fields, dnn_hidden_units=HIDDEN, l2_reg_linear=0, **none)
    elif name == "DCN-V2":
        options = {"cross_num": 2, "cross_parameterization": "matrix", "l2_reg_cross": 0}
        model = models.DCN([], fields, dnn_hidden_units=HIDDEN, l2_reg_linear=0, **options, **none)
    elif name == "AutoInt":
        model = models.AutoInt([], fields, att_layer_num=3, att_head_num=2, dnn_hidden_units=(), **none)
    else:
        one = inputs.SparseFeat(f"hist_c{item}", fields[item].vocabulary_size, DIM, embedding_name=f"c{item}")
        past = inputs.VarLenSparseFeat(one, maxlen=STEPS, length_name="length")
        model = models.DIN([*fields, past], [f"c{item}"], dnn_hidden_units=HIDDEN, att_hidden_size=(80, 40), **none)
        dice = importlib.import_module("deepctr_torch.layers.activation").Dice  # which its option fails to make
        model.dnn.activation_layers = nn.ModuleList(dice(width) for width in HIDDEN)
    model.compile(torch.optim.Adam(model.parameters(), rate), "binary_crossentropy")

    def held(rows: Rows) -> dict[str, NDArray[Any]]:
        made = arrays(rows)
        if name == "DIN":  # its steps come first, ours last
            ids = made.pop("past")
            length = (ids > 0).sum(axis=1)
            place = (np.arange(STEPS) + STEPS - length[:, None]) % STEPS
            made |= {f"hist_c{item}": np.take_along_axis(ids, place, axis=1), "length": length}
        return made

    return Learner(
        model,
        lambda epochs: void(model.fit(held(data.rows), data.labels.numpy(), BATCH, epochs, verbose=0)),
        lambda rows: np.asarray(model.predict(held(rows), 8192))[:, 0],
    )


def fuxictr(name: str, data: Data, rate: float, zoo: Path, folder: Path) -> Learner:
    feature_map = importlib.import_module("fuxictr.features").FeatureMap("made", str(folder))
    categorical = data.schema.of_kind("categorical")
    feature_map.features.update(
        {f"c{i}": {"type": "categorical", "source": "", "vocab_size": f.size} for i, f in enumerate(categorical)}
    )
    options: dict[str, Any] = {"hidden_units": list(HIDDEN)}
    if name == "DIN":
        item = f"c{[f.name for f in categorical].index('item')}"
        past = {"max_len": STEPS, "share_embedding": item, "feature_encoder": None, "padding_idx": 0}
        size = feature_map.features[item]["vocab_size"]
        feature_map.features["past"] = {"type": "sequence", "source": "", "vocab_size": size} | past
        options = {"din_target_field": [item], "din_sequence_field": ["past"], "attention_hidden_units": [80, 40]}
        options |= {"dnn_hidden_units": list(HIDDEN), "dnn_activations": "Dice"}
    elif name == "DCN-V2":
        options = {"num_cross_layers": 2, "parallel_dnn_hidden_units": list(HIDDEN)}
    elif name == "AutoInt":
        options = {"attention_layers": 3, "num_heads": 2, "attention_dim": DIM, "dnn_hidden_units": []}
    elif name == "FGCNN":
        options = {"channels": list(CHANNELS), "kernel_heights": 7, "pooling_sizes": 2, "recombined_channels": 3}
        options["dnn_hidden_units"] = list(HIDDEN)
    feature_map.labels, feature_map.num_fields, feature_map.default_emb_dim = ["label"], len(feature_map.features), DIM
    feature_map.set_column_index()
    model = getattr(model_file(zoo, name), name.replace("-V2", "v2"))(
        feature_map,
        embedding_dim=DIM,
        learning_rate=rate,
        optimizer="adam",
        loss="binary_crossentropy",
        metrics=["AUC"],
        verbose=0,
        model_root=str(folder),
        **options,
    )
    loader = importlib.import_module("fuxictr.pytorch.dataloaders.npz_dataloader").NpzDataLoader
    np.savez(folder / "train", label=data.labels.numpy(), **arrays(data.rows))  # type: ignore[arg-type]
    batches = loader(feature_map, str(folder / "train"), BATCH, shuffle=True, num_workers=1)
    model._max_gradient_norm, model._total_steps, model._eval_steps, model._stop_training = 10.0, 0, sys.maxsize, False

    def fit(epochs: int) -> None:
        for _ in range(epochs):
            model.train_epoch(batches)

    def scores(rows: Rows) -> NDArray[Any]:
        np.savez(folder / "scored", label=np.zeros(len(rows)), **arrays(rows))  # type: ignore[arg-type]
        return np.asarray(model.predict(loader(feature_map, str(folder / "scored"), 8192, num_workers=1)))

    return Learner(model, fit, scores)


def model_file(zoo: Path, name: str) -> Any:
    """Return the module of a model in the zoo."""
    place = {"DeepFM": "DeepFM/DeepFM_torch", "DCN-V2": "DCNv2"}.get(name, name)
    path = next((zoo / place / "src").glob("[A-Z]*.py"))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@torch.no_grad()
def copied(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy weights, turned round where a layer holds them the other way."""
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source if target.shape == source.shape else source.mT)


def deepctr_equality() -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield what layer, our output and DeepCTR-Torch's."""
    theirs = importlib.import_module("deepctr_torch.layers.interaction")
    e = torch.randn(64, 8, DIM)
    yield "FM", FM()(e), theirs.FM()(e).squeeze(1)
    layer, other = InteractingLayer(DIM, DIM), theirs.InteractingLayer(DIM)
    weights = [layer.query.weight, layer.key.weight, layer.value.weight, cast(nn.Linear, layer.residual).weight]
    with torch.no_grad():  # theirs is square, and turned round
        for weight, target in zip(weights, (other.W_Query, other.W_key, other.W_Value, other.W_Res), strict=True):
            target.copy_(weight.mT)
    yield "AutoInt's layer", layer(e), other(e)
    cross, crosses = CrossNetwork(8, DIM), theirs.CrossNet(8 * DIM, layer_num=2, parameterization="matrix")
    linear = [cast(nn.Linear, c) for c in cross.crosses]
    copied(
        [*crosses.kernels, *crosses.bias],
        [*(c.weight for c in linear), *(c.bias[:, None] for c in linear)],
    )
    yield "DCN-V2's crosses", *crossed(cross, e, crosses(e.flatten(1)))


def fuxictr_equality(zoo: Path) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield what layer, our output and FuxiCTR's."""
    theirs = importlib.import_module("fuxictr.pytorch.layers")
    e = torch.randn(64, 8, DIM)
    yield "FM", FM()(e), theirs.InnerProductInteraction(8, output="product_sum")(e).squeeze(1)
    ours_, other = IPNN(8, DIM), theirs.InnerProductInteraction(8, output="inner_product")
    yield "IPNN's products", (e @ e.mT).flatten(1).index_select(1, ours_.pairs), other(e)
    cross, crosses = CrossNetwork(8, DIM), theirs.CrossNetV2(8 * DIM, 2)
    copied(list(crosses.parameters()), list(cross.crosses.parameters()))
    yield "DCN-V2's crosses", *crossed(cross, e, crosses(e.flatten(1)))
    layer = InteractingLayer(DIM, 2 * DIM)
    attention = model_file(zoo, "AutoInt").MultiHeadSelfAttention(DIM, 2 * DIM, num_heads=2)
    copied(list(attention.parameters()), [w.weight for w in (layer.query, layer.key, layer.value)] + residual(layer))
    yield "AutoInt's layer", layer(e), attention(e)
    generator = FeatureGenerator(8, DIM, (3, 4), kernel=3)
    peer = model_file(zoo, "FGCNN").FGCNN_Layer(8, DIM, [3, 4], [3, 3], [2, 2], [3, 3])
    copied(list(peer.parameters()), list(generator.parameters()))
    yield "FGCNN's generator", generator(e), peer(e[:, None])
    unit = LocalActivationUnit(DIM, (80, 40), "prelu")
    attend = theirs.DIN_Attention(DIM, attention_units=[80, 40], hidden_activations="PReLU")
    keys, real = torch.randn(64, STEPS, DIM), torch.rand(64, STEPS) < 0.7
    with torch.no_grad():
        for target, source in zip(attend.parameters(), unit.parameters(), strict=True):
            target.copy_(source if source.shape == target.shape else source[:1])  # one slope for all, not one each
    yield "DIN's unit", (unit(e[:, 0], keys, real)[:, None] @ keys).squeeze(1), attend(e[:, 0], keys, real)


def residual(layer: InteractingLayer) -> list[Tensor]:
    return [cast(nn.Linear, layer.residual).weight]


def crossed(network: CrossNetwork, e: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Return a network's crosses and the peer's, both times the same weights: ours are computed together with these."""
    first, weight = e.flatten(1), torch.randn(theirs.shape[1]) / theirs.shape[1] ** 0.5
    layers = [w for layer in network.crosses for w in layer.parameters()]
    found = crossing.cross(first, weight, *layers)
    return crossing.crossed(first, weight, *layers) if found is None else found, theirs @ weight


def libraries(zoo: Path | None, folder: Path) -> dict[str, Maker]:
    """Return what makes models by library, of those that are here; FuxiCTR writes its rows into the folder."""
    makers: dict[str, Maker] = {"workingpapers": ours}
    if importlib.util.find_spec("deepctr_torch"):
        makers["DeepCTR-Torch"] = deepctr
    if importlib.util.find_spec("fuxictr") and zoo:
        makers["FuxiCTR"] = lambda name, data, _, rate: fuxictr(name, data, rate, zoo, folder / "made")
        (folder / "made").mkdir()
    return makers


def measure(name: str, held: Data, seeds: int, made: dict[str, Maker]) -> None:
    """Print a line for each library: rows per second, ours over it, the AUC, and its deviation between seeds."""
    speeds, reached = defaultdict(list), defaultdict(list)
    for seed in range(seeds):
        for library, make in made.items():
            torch.manual_seed(seed)
            learner = make(name, held, seed, RATE)
            start = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                learner.fit(EPOCHS)
            speeds[library].append(EPOCHS * len(held.rows) / (time.perf_counter() - start))
            reached[library].append(auc(held.held_labels, learner.scores(held.held)))
    for library, found in speeds.items():
        speed, ratio = max(found), max(speeds["workingpapers"]) / max(found)
        spread = f"{np.mean(reached[library]):8.4f} +- {np.std(reached[library]):.4f}"
        print(f"{name:8} {library:14} {speed:12,.0f} {ratio:6.2f} {spread}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("made-up", "movielens", "flights"), default="made-up")
    parser.add_argument("--rows", type=int, default=80_000, help="of made-up data")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--zoo", type=Path, help="the folder model_zoo of a clone of FuxiCTR")
    parser.add_argument("--only", choices=OURS, help="one model")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    logging.disable()
    importlib.import_module("accelerate").Accelerator()  # or the first to train would pay for this,
    torch.optim.Adam([torch.zeros(1)])  # and for what an optimizer imports
    with tempfile.TemporaryDirectory() as folder:
        makers = libraries(given.zoo, Path(folder))
        print(f"torch {torch.__version__}, {given.threads} threads")
        for library, layers in (
            ("DeepCTR-Torch", deepctr_equality() if "DeepCTR-Torch" in makers else ()),
            ("FuxiCTR", fuxictr_equality(given.zoo) if "FuxiCTR" in makers else ()),
        ):
            if library not in makers:
                print(f"{library} is absent; see the top of this file.")
            for layer, mine, peer in layers:
                print(f"{library:14} {layer:18} differs by {float((mine - peer).detach().abs().max()):.1e}")
        print(f"{'model':8} {'library':14} {'rows/s':>12} {'ours':>6} {'AUC':>8}")
        for name in [given.only] if given.only else OURS:
            if (name, given.data) == ("DIN", "flights"):
                print("DIN needs histories, which flights do not have.")
                continue
            chosen = {
                library: make for library, make in makers.items() if (name, library) != ("FGCNN", "DeepCTR-Torch")
            }
            measure(name, data(name, given.data, given.rows), given.seeds, chosen)


if __name__ == "__main__":
    main()
