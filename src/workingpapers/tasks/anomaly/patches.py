"""The entries of `anomaly` that judge every place of an image: they localise, and the image's score is the highest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workingpapers.tasks.anomaly.settings import task
from workingpapers.tasks.protocol import Context

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from workingpapers.tasks.anomaly.examples import Detector, Examples

CHANNELS = 100  # drawn at random: as published for ResNet-18 (Defard et al., "PaDiM", ICPR 2021)
FLOOR = 0.01  # of the mean variance: published as 0.01 in the units of ResNet's features
BANK = 4_000  # patches kept of the training images
CHUNK = 64  # images scored at a time


class PlaceGaussians:
    """One Gaussian per place, as in PaDiM: normal images have to be aligned, at least roughly.

    With rows z (n, C) of a place, its covariance is (1 - rho) S + (rho tr(S) / C + floor) I: Ledoit and Wolf's
    shrinkage as in `GaussianAnomalyDetector`, and a floor for places at which normal images never differ. The score is
    the Mahalanobis distance.

    Args:
        maps: (n, C, h, w) of normal images.
        channels: C' of the channels that are used.
    """

    def __init__(self, maps: NDArray[Any], channels: NDArray[Any]) -> None:
        import torch

        self._channels, self._shape = channels, maps.shape[2:]
        rows = self._rows(maps)
        means = rows.mean(dim=1, keepdim=True)
        rows = rows - means
        count, dimensions = rows.shape[1:]
        covariance = rows.mT @ rows / count
        trace = covariance.diagonal(dim1=1, dim2=2).sum(dim=1)
        square = covariance.square().sum(dim=(1, 2))
        fourth = rows.square().sum(dim=2).square().mean(dim=1)
        spread = (square - trace**2 / dimensions).clamp(min=torch.finfo(rows.dtype).tiny)
        shrinkage = ((fourth - square) / count / spread).clamp(0, 1)
        floor = shrinkage * trace / dimensions + FLOOR * (trace / dimensions).mean()
        covariance *= (1 - shrinkage)[:, None, None]
        covariance.diagonal(dim1=1, dim2=2).add_(floor[:, None])
        self.means_, self.components_ = means.numpy(), torch.linalg.cholesky(covariance).numpy()

    def _rows(self, maps: NDArray[Any]) -> Any:
        """Return the places as a float64 tensor (h w, n, C')."""
        import torch

        return torch.from_numpy(maps[:, self._channels]).double().flatten(2).permute(2, 0, 1)

    def score(self, levels: list[NDArray[Any]]) -> NDArray[Any]:
        """Return the distances, (m, h, w)."""
        import numpy as np

        maps = levels[0]
        return np.concatenate([self._distances(maps[i : i + CHUNK]) for i in range(0, len(maps), CHUNK)])

    def _distances(self, maps: NDArray[Any]) -> NDArray[Any]:
        import torch

        centred = (self._rows(maps) - torch.from_numpy(self.means_)).mT
        white = torch.linalg.solve_triangular(torch.from_numpy(self.components_), centred, upper=False)
        distances: NDArray[Any] = white.square().sum(dim=1).sqrt().T.reshape(-1, *self._shape).numpy()
        return distances


class PatchBank:
    """Distance of every patch to the nearest of a random sample of normal patches, from any place.

    A plain relative of PatchCore (Roth et al., CVPR 2022): a random sample stands for its greedy coreset, and there is
    no reweighting. Channels are standardised over all normal patches.

    Args:
        maps: (n, C, h, w) of normal images.
        seed: of the sample.
    """

    def __init__(self, maps: NDArray[Any], seed: int) -> None:
        import numpy as np

        patches = self._patches(maps)
        self._mean, deviation = patches.mean(axis=0), patches.std(axis=0)
        # Channels that hardly vary must not get hardly finite weights.
        self._deviation = np.maximum(deviation, 1e-3 * deviation.max() if deviation.any() else 1.0)
        chosen = np.random.default_rng(seed).permutation(len(patches))[:BANK]
        self._bank = self._standard(patches[chosen])

    @staticmethod
    def _patches(maps: NDArray[Any]) -> NDArray[Any]:
        import numpy as np

        return np.moveaxis(maps, 1, 3).reshape(-1, maps.shape[1]).astype(np.float32)

    def _standard(self, patches: NDArray[Any]) -> NDArray[Any]:
        return (patches - self._mean) / self._deviation

    def score(self, levels: list[NDArray[Any]]) -> NDArray[Any]:
        """Return the distances, (m, h, w)."""
        import numpy as np
        from sklearn.metrics import pairwise_distances_argmin_min

        maps = levels[0]
        parts = (self._standard(self._patches(maps[i : i + CHUNK])) for i in range(0, len(maps), CHUNK))
        nearest = [pairwise_distances_argmin_min(part, self._bank)[1] for part in parts]
        return np.concatenate(nearest).reshape(len(maps), *maps.shape[2:])


@task.entry(needs=["maps"])
def pixel_gaussian(train: Examples, context: Context) -> Detector:
    """A Gaussian at every place of intermediate maps, 100 random channels; localises (PaDiM)."""
    import numpy as np

    from workingpapers.tasks.anomaly.examples import calibrated

    total = train.levels[0].shape[1]
    channels = np.sort(np.random.default_rng(context.seed).permutation(total)[:CHANNELS])
    return calibrated(lambda part: PlaceGaussians(part.levels[0], channels), train)


@task.entry(needs=["maps"])
def patch_knn(train: Examples, context: Context) -> Detector:
    """Distance of each patch to the nearest of 4,000 normal ones, any place; localises."""
    from workingpapers.tasks.anomaly.examples import calibrated

    return calibrated(lambda part: PatchBank(part.levels[0], context.seed), train)
