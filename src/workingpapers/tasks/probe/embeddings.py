"""Settings `novel-classes` and `representation`: the same small network, trained from scratch with each head or loss.

The papers of these heads train their backbones with them, and their claims are about what the features become: here
they do the same at a scale that a laptop trains in seconds. Every entry gets the same network, images, steps and
optimiser.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from workingpapers.tasks.probe.settings import task
from workingpapers.tasks.protocol import Conditions, Context, Prepared

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from workingpapers.data.types import LabelledData

SIZE = 32  # pixels
WIDTH = 128  # of the embedding
BATCH = 64
RATE = 1e-3  # AdamW's usual rate, for every entry
SHOTS, EPISODES = 5, 20


@dataclass(frozen=True)
class Images:
    """What an entry trains on: images (N, 3, 32, 32), labels 0..K-1 (N,) that all occur, and the seed."""

    X: Tensor
    y: Tensor
    seed: int

    @property
    def classes(self) -> int:
        """K."""
        return int(self.y.max()) + 1


@dataclass(frozen=True)
class ImageProblem:
    """Images to train on and images held back, each with labels 0..K-1; whether OpenMoji's pictures are other data."""

    train: Images
    inputs: Tensor
    labels: NDArray[np.int64]
    transfers: bool = True


@dataclass(frozen=True)
class Network:
    """A trained encoder, images (B, 3, 32, 32) to embeddings (B, 128), and a head to logits where the loss has one."""

    encoder: nn.Module
    head: nn.Module | None = None


def _images(data: LabelledData) -> NDArray[Any]:
    """Return a data set's images at 32 px, from the cache or read now: (N, 3, 32, 32) in [0, 1]."""
    from workingpapers.data.features import extract
    from workingpapers.data.models import load_model
    from workingpapers.data.types import View

    return extract(data, load_model("pixels"), View("images", SIZE, lambda backbone, batch: batch))


def prepare(conditions: Conditions) -> Prepared:
    """Read and cache the images.

    Raises:
        UserError: the data are no images, or cannot be used.
    """
    from workingpapers.tasks.probe.examples import pool

    data = pool(conditions)
    _images(data)
    return Prepared(data.fingerprint, "", data.remarks)


def load(conditions: Conditions, seed: int, prepared: Prepared) -> ImageProblem:
    """Draw a seed's training images and the held-back ones: official test images, or 30 % of each class.

    Raises:
        UserError: the images are others than those that were prepared.
    """
    import numpy as np
    import torch

    from workingpapers.data.splits import stratified
    from workingpapers.tasks.probe.examples import pool
    from workingpapers.tasks.protocol import load_task

    data = pool(conditions)
    prepared.check_data(data.name, data.fingerprint)
    budget = load_task(conditions.task).setting(conditions.setting).budgets[conditions.budget]
    X, y = _images(data), data.labels
    rng = np.random.default_rng([seed, 3])
    if data.part is None:
        held = stratified(rng, y, round(0.3 * len(y)))
        kept = np.setdiff1d(np.arange(len(y)), held)
    else:
        kept, held = np.flatnonzero(data.part == "train"), np.flatnonzero(data.part == "test")
    kept, held = (rows[stratified(rng, y[rows], n)] for rows, n in ((kept, budget.train), (held, budget.test)))
    _, places = np.unique(y[kept], return_inverse=True)
    lookup = np.full(len(data.class_names), -1)
    lookup[y[kept]] = places
    train = Images(torch.from_numpy(X[kept]).float(), torch.from_numpy(places), seed)
    transfers = not conditions.data.startswith("openmoji")
    return ImageProblem(train, torch.from_numpy(X[held]).float(), lookup[y[held]], transfers)


def embed(network: Network, images: Tensor) -> NDArray[np.float32]:
    """Return the embeddings of images, (N, 128)."""
    import torch

    network.encoder.eval()
    with torch.inference_mode():
        return torch.cat([network.encoder(part) for part in torch.split(images, 512)]).numpy()


def measure_novel(fit: Callable[[Any], Network], problem: ImageProblem, context: Context) -> dict[str, float]:
    """Train on two thirds of the classes; classify held-back images of the others, and of all, from five examples each.

    Raises:
        UserError: fewer than six classes, or too few held-back examples of one.
    """
    import numpy as np
    import torch

    from workingpapers.errors import UserError
    from workingpapers.methods.heads.hyperspherical import evaluate_novel

    train = problem.train
    fewest = int(np.bincount(problem.labels).min())
    if train.classes < 6 or fewest <= SHOTS:
        raise UserError(
            f"This setting needs at least 6 classes with more than {SHOTS} held-back examples each; "
            f"there are {train.classes} classes, the smallest with {fewest}."
        )
    order = np.random.default_rng([context.seed, 4]).permutation(train.classes)
    base, novel = np.sort(order[: round(train.classes * 2 / 3)]), order[round(train.classes * 2 / 3) :]
    rows = torch.from_numpy(np.flatnonzero(np.isin(train.y.numpy(), base)))
    labels = torch.from_numpy(np.searchsorted(base, train.y[rows].numpy()))
    network = fit(replace(train, X=train.X[rows], y=labels))
    found = embed(network, problem.inputs)
    options: dict[str, Any] = {"shots": SHOTS, "episodes": EPISODES, "random_state": context.seed}
    disjoint = evaluate_novel(found, problem.labels, novel, scenario="disjoint", **options)
    joint = evaluate_novel(found, problem.labels, novel, scenario="joint", **options)
    return {"disjoint-accuracy": 100 * disjoint["novel"], "joint-harmonic-mean": 100 * joint["harmonic_mean"]}


def measure_representation(fit: Callable[[Any], Network], problem: ImageProblem, context: Context) -> dict[str, float]:
    """Train on all classes; score the head, the spread of the features, and a linear probe on OpenMoji's groups."""
    import numpy as np
    import torch

    from workingpapers.data.datasets import DATASETS
    from workingpapers.methods.heads.grassmann import within_class_variance

    network = fit(problem.train)
    features = embed(network, problem.inputs)
    assert network.head is not None  # every entry of this setting has one
    with torch.inference_mode():
        predicted = network.head(torch.from_numpy(features)).argmax(dim=1).numpy()
    metrics = {
        "accuracy": 100 * float(np.mean(predicted == problem.labels)),
        "within-class-variance": within_class_variance(features, problem.labels),
    }
    if problem.transfers and DATASETS["openmoji"].here():
        metrics["transfer-accuracy"] = _transfer(network, context.seed)
    return metrics


def _transfer(network: Network, seed: int) -> float:
    """Return the accuracy of logistic regression on a network's features of OpenMoji's groups."""
    import torch
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from workingpapers.data.datasets import load_dataset

    data = load_dataset("openmoji")
    features = embed(network, torch.from_numpy(_images(data)[:]).float())
    parts = train_test_split(features, data.labels, test_size=0.3, stratify=data.labels, random_state=seed)
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)).fit(parts[0], parts[2])
    return 100 * float(probe.score(parts[1], parts[3]))


def _encoder(seed: int) -> nn.Module:
    """Return the network that every entry trains: four convolutions, batch-normalised, 128 features.

    A seed's network starts from the same weights whatever is trained on top of it.
    """
    import torch
    from torch import nn

    torch.manual_seed(seed)

    def block(a: int, b: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)]

    return nn.Sequential(
        *block(3, 16), *block(16, 32), *block(32, 64), nn.Conv2d(64, WIDTH, 3, padding=1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


def _batches(train: Images, epochs: int, balanced: bool) -> Iterator[Tensor]:
    """Yield the rows of as many batches either way: shuffled, or balanced, 16 classes with 4 images each."""
    import torch

    steps = -(-len(train.y) // BATCH)
    groups = [torch.nonzero(train.y == label).flatten() for label in range(train.classes)]
    for _ in range(epochs):
        order = torch.randperm(len(train.y))
        for step in range(steps):
            if not balanced:
                yield order[step * BATCH : (step + 1) * BATCH]
                continue
            chosen = torch.randperm(train.classes)[:16].tolist()
            yield torch.cat([groups[c][torch.randint(len(groups[c]), (4,))] for c in chosen])


def _train(
    train: Images,
    context: Context,
    loss: Callable[[Tensor, Tensor], Tensor],
    head: nn.Module | None = None,
    balanced: bool = False,
) -> Network:
    """Train the encoder, and the head's parameters, on a loss of embeddings and labels.

    Parameters on the Grassmannian are trained by Riemannian SGD with momentum 0.9 and peak rate 0.1, as published, all
    others by AdamW; both rates follow a half cosine to zero.
    """
    import torch

    from workingpapers.methods.heads.grassmann import RiemannianSGD, split_param_groups

    encoder = _encoder(context.seed)
    manifold, ordinary = split_param_groups(head) if head is not None else ([], [])
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW([*encoder.parameters(), *ordinary], lr=RATE)]
    if manifold:
        optimizers.append(RiemannianSGD(manifold, lr=0.1))
    steps = context.budget.epochs * -(-len(train.y) // BATCH)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, steps) for o in optimizers]
    encoder.train()
    for step, rows in enumerate(_batches(train, context.budget.epochs, balanced)):
        value = loss(encoder(train.X[rows]), train.y[rows])
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        if step % 20 == 0:
            context.log("training loss by step", step, value.item())
    return Network(encoder, head)


def _with_head(train: Images, context: Context, make: Callable[[], nn.Module]) -> Network:
    """Train with cross-entropy on a head's logits."""
    import torch
    from torch.nn import functional as F

    torch.manual_seed(context.seed)
    head = make()
    return _train(train, context, lambda embeddings, labels: F.cross_entropy(head(embeddings), labels), head)


@task.entry("novel-classes", "representation")
def softmax(train: Images, context: Context) -> Network:
    """Ordinary linear classifier and cross-entropy."""
    from torch import nn

    return _with_head(train, context, lambda: nn.Linear(WIDTH, train.classes))


@task.entry("novel-classes", "representation", paper="hyperspherical")
def normalised_softmax(train: Images, context: Context) -> Network:
    """Features and class weights on the unit sphere, temperature 0.05 (NormalizedLinear)."""
    from workingpapers.methods.heads.hyperspherical import NormalizedLinear

    return _with_head(train, context, lambda: NormalizedLinear(WIDTH, train.classes, scale=20.0))


@task.entry("novel-classes")
def untrained(train: Images, context: Context) -> Network:
    """The network as it was initialised: what training adds or takes away."""
    return Network(_encoder(context.seed))


@task.entry("novel-classes")
def triplet(train: Images, context: Context) -> Network:
    """Triplet loss on unit embeddings, hardest pairs of the batch, margin 0.2."""
    import torch
    from torch.nn import functional as F

    def loss(embeddings: Tensor, labels: Tensor) -> Tensor:
        unit = F.normalize(embeddings)
        distance = (2 - 2 * unit @ unit.T).clamp_min(1e-9).sqrt()
        same = labels[:, None] == labels
        farthest = distance.masked_fill(~same, 0.0).amax(dim=1)
        nearest = distance.masked_fill(same, torch.inf).amin(dim=1)
        return (farthest - nearest + 0.2).clamp_min(0.0).mean()

    return _train(train, context, loss, balanced=True)


@task.entry("novel-classes")
def contrastive(train: Images, context: Context) -> Network:
    """Contrastive loss on unit embeddings, all pairs of the batch, margin 0.5."""
    from torch.nn import functional as F

    def loss(embeddings: Tensor, labels: Tensor) -> Tensor:
        unit = F.normalize(embeddings)
        distance = (2 - 2 * unit @ unit.T).clamp_min(1e-9).sqrt()
        same = (labels[:, None] == labels).triu(1)
        other = (labels[:, None] != labels).triu(1)
        return distance[same].square().mean() + (0.5 - distance[other]).clamp_min(0.0).square().mean()

    return _train(train, context, loss, balanced=True)


def _grassmann(train: Images, context: Context, dimensions: int) -> Network:
    from workingpapers.methods.heads.grassmann import GrassmannLinear

    return _with_head(train, context, lambda: GrassmannLinear(WIDTH, train.classes, dimensions))


@task.entry("representation", paper="grassmann")
def grassmann_k1(train: Images, context: Context) -> Network:
    """A line per class on the Grassmannian."""
    return _grassmann(train, context, 1)


@task.entry("representation", paper="grassmann")
def grassmann_k4(train: Images, context: Context) -> Network:
    """A subspace of four dimensions per class."""
    return _grassmann(train, context, 4)


@task.entry("representation", paper="grassmann")
def grassmann_k8(train: Images, context: Context) -> Network:
    """A subspace of eight dimensions per class."""
    return _grassmann(train, context, 8)
