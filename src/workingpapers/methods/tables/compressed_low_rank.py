"""Tables of low rank: rows are narrow, or products of small cores.

N ids, d wide, fields of n_f ids.

    tt         N <= n1 n2 n3, d = d1 d2 d3; the id's digits i1 = x mod n1, i2 = (x div n1) mod n2, i3 the rest, and
               e(x) = G1[i1] (d1 x R) . G2[i2] (R x d2 R) . G3[i3] (R x d3), reshaped to d
    mixed-dim  e(x) = E_f[x] P_f, rows w_f wide with w_f = d (n_min / n_f)^alpha, rounded to a power of two
    autodim    e(x) = sum_k p_fk norm(E_k[x] W_fk + b_fk) over widths 2, 4, .., d while searching, p_f a softmax of
               learned weights with Gumbel noise; the likeliest width of each field is kept

Source: as in `compressed_hash`; in turn Yin et al. 2021 (TT-Rec), Ginart et al. 2021 (mixed dimensions) and Zhao et
al. 2021 (AutoDim). Two public implementations of TT-Rec take the digits in opposite order; this is the study's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from workingpapers.methods.tables.common import Table
from workingpapers.methods.tables.compressed_parts import (
    SettlingTable,
    batch_norm,
    by_group,
    floats_within,
    once_each,
    out_of_reach,
)


class TensorTrainTable(Table):
    """Vectors are products of three cores.

    Args:
        sizes, dim: see `Table`.
        ratio: r; the rank is the largest that fits (0.5).
        rank: R itself, instead of `ratio`.
        init_scale: standard deviation of the initial products (0.01). The entries of the cores start away from zero,
            with random signs: products of three normal numbers would nearly all be zero.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        dim: int,
        *,
        ratio: float = 0.5,
        rank: int | None = None,
        init_scale: float = 0.01,
    ) -> None:
        super().__init__(sizes, dim)
        self.rows, self.widths = _digits(self.num_ids), _factors(dim)
        self.rank = self._rank(ratio) if rank is None else rank
        if self.rank < 1:
            raise ValueError(f"rank is {rank}; it must be 1 or more")
        ends = 1, self.rank, self.rank, 1
        # An entry of the product is a sum of R^2 products of three.
        std = (init_scale / self.rank) ** (1 / 3)
        self.cores = nn.ParameterList(
            nn.Parameter(_away_from_zero(n, ends[k] * w * ends[k + 1]) * std)
            for k, (n, w) in enumerate(zip(self.rows, self.widths, strict=True))
        )

    def _rank(self, ratio: float) -> int:
        """Return the largest R with n2 d2 R^2 + (n1 d1 + n3 d3) R floats in the budget."""
        a, b, c = (n * w for n, w in zip(self.rows, self.widths, strict=True))
        allowed = floats_within(ratio, self.num_ids, self.dim)
        rank = int((math.sqrt((a + c) ** 2 + 4 * b * allowed) - (a + c)) / (2 * b))
        if rank < 1:
            raise out_of_reach("tt", ratio, (a + b + c) / (self.num_ids * self.dim))
        return rank

    def forward(self, ids: Tensor) -> Tensor:
        """Return the vectors of global ids."""
        if not torch.compiler.is_exporting():
            return once_each(ids, self._products, self.dim)
        rows, pairs = self.rows[0], self.rows[0] * self.rows[1]
        first, second, third = self._matrices()
        left = first[ids % rows] @ second[ids % pairs // rows]
        left = left.view(*ids.shape, self.widths[0] * self.widths[1], self.rank)
        return (left @ third[ids // pairs]).flatten(-2)

    def _products(self, ids: Tensor) -> Tensor:
        """Return the vectors of ids (n,), with one product for each digit, and for each pair of the first two once.

        Copies of cores for each id would be far larger than the table.
        """
        rows, pairs = self.rows[0], self.rows[0] * self.rows[1]
        first, second, third = self._matrices()
        pair, place = torch.unique(ids % pairs, return_inverse=True)
        left = _by_digit(first, pair % rows, pair // rows, second).view(
            len(pair), self.widths[0] * self.widths[1], self.rank
        )
        last = ids // pairs
        order = last.argsort()
        product = _by_digit(left, place[order], last[order], third)
        return torch.empty_like(product).index_copy(0, order, product)

    def _matrices(self) -> list[Tensor]:
        """Return the cores as matrices of each digit: (n1, d1, R), (n2, R, d2 R) and (n3, R, d3)."""
        ends = self.rank, self.widths[1] * self.rank, self.widths[2]
        return [core.view(len(core), -1, end) for core, end in zip(self.cores, ends, strict=True)]


def _by_digit(rows: Tensor, index: Tensor, digit: Tensor, cores: Tensor) -> Tensor:
    """Return rows[index] (n, a, b) times the cores (m, b, c) of their digits (n,), which are sorted: (n, a c)."""
    counts = torch.bincount(digit, minlength=len(cores)).tolist()
    # A gradient is gathered at once; without one the rows of a digit need not be held beside those of the others.
    whole = torch.split(rows[index], counts) if torch.is_grad_enabled() else None
    parts = whole or (rows[at] for at in torch.split(index, counts))
    return torch.cat([(part @ core).flatten(1) for part, core in zip(parts, cores, strict=True)])


def _digits(num_ids: int) -> tuple[int, int, int]:
    """Return three numbers, about equal, whose product is at least N."""
    first = math.ceil(round(num_ids ** (1 / 3), 9))
    second = math.ceil(math.sqrt(num_ids / first))
    return first, second, -(-num_ids // (first * second))


def _factors(dim: int) -> tuple[int, int, int]:
    """Return three factors of d, as equal as they can be, the smallest first."""
    splits = [(a, b, dim // (a * b)) for a in range(1, dim + 1) for b in range(a, dim // a + 1) if dim % (a * b) == 0]
    return min((s for s in splits if s[1] <= s[2]), key=lambda s: s[2] - s[0])


def _away_from_zero(rows: int, columns: int) -> Tensor:
    """Return numbers of variance 1 whose sizes are uniform between half and one and a half of their middle."""
    sizes = torch.rand(rows, columns) + 0.5
    return sizes * (2 * torch.randint(2, sizes.shape) - 1) / math.sqrt(13 / 12)


class FieldWidthsTable(Table):
    """Every field has rows of its own width and a projection to the common one.

    Args:
        sizes, dim: see `Table`.
        widths: w_f, 1 to d; a field of full width needs no projection, unless there is a bias.
        bias: whether the projections add one.
        init_scale: standard deviation of the initial vectors (0.01).
    """

    def __init__(
        self, sizes: Sequence[int], dim: int, *, widths: Sequence[int], bias: bool = False, init_scale: float = 0.01
    ) -> None:
        super().__init__(sizes, dim)
        if len(widths) != len(sizes) or not all(1 <= w <= dim for w in widths):
            raise ValueError(f"widths are {list(widths)}; need {len(sizes)} of 1 to {dim}")
        self.widths = tuple(widths)
        self.rows = nn.ParameterList(
            nn.Parameter(torch.empty(n, w).normal_(std=init_scale)) for n, w in zip(sizes, widths, strict=True)
        )
        self.projections = nn.ModuleList(
            nn.Linear(w, dim, bias=bias) if w < dim or bias else nn.Identity() for w in widths
        )
        for projection in self.projections:
            if isinstance(projection, nn.Linear):  # keeps the scale of the rows
                nn.init.normal_(projection.weight, std=projection.in_features**-0.5)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the vectors of global ids."""
        field = self.fields_of(ids)
        parts = [partial(self._of_field, f) for f in range(len(self.sizes))]
        return by_group((ids - self.offsets[field])[..., None], field, parts, self.dim)

    def _of_field(self, field: int, local: Tensor) -> Tensor:
        found: Tensor = self.projections[field](self.rows[field][local[:, 0]])
        return found


class MixedDimTable(FieldWidthsTable):
    """Fields of many values get narrow rows; a field is narrowed only where that saves memory.

    Args:
        sizes, dim: see `Table`.
        ratio: r; alpha is the smallest that fits (0.5).
        alpha: itself, instead of `ratio`: 0 keeps every field at full width.
        init_scale: standard deviation of the initial vectors (0.01).
    """

    def __init__(
        self,
        sizes: Sequence[int],
        dim: int,
        *,
        ratio: float = 0.5,
        alpha: float | None = None,
        init_scale: float = 0.01,
    ) -> None:
        self.alpha = _alpha(sizes, dim, ratio) if alpha is None else alpha
        if self.alpha < 0:
            raise ValueError(f"alpha is {alpha}; it must be 0 or more")
        super().__init__(sizes, dim, widths=_widths(sizes, dim, self.alpha), init_scale=init_scale)


def _widths(sizes: Sequence[int], dim: int, alpha: float) -> list[int]:
    least, widths = min(sizes, default=1), []
    for n in sizes:
        width = 2 ** round(math.log2(max(1.0, dim * (least / n) ** alpha)))
        widths.append(width if width < dim and n * width + width * dim < n * dim else dim)
    return widths


def _alpha(sizes: Sequence[int], dim: int, ratio: float) -> float:
    allowed = floats_within(ratio, sum(sizes), dim)

    def floats(alpha: float) -> int:
        widths = _widths(sizes, dim, alpha)
        return sum(n * w + (w * dim if w < dim else 0) for n, w in zip(sizes, widths, strict=True))

    low, high = 0.0, 64.0  # beyond, every larger field is one number wide
    if floats(high) > allowed:
        raise out_of_reach("mixed-dim", ratio, floats(high) / (sum(sizes) * dim))
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if floats(middle) <= allowed else (middle, high)
    return high


class AutoDimTable(SettlingTable):
    """Learns how wide each field should be, then keeps that width alone.

    Training holds a table for every width. The weights of the widths are learnt with everything else, on training
    batches; the authors take them from validation batches. In eval mode a field answers with its likeliest width.

    Args:
        sizes, dim: see `Table`.
        anneal: by how much a step lowers the temperature of the Gumbel softmax, from 1 down to 0.01 (5e-5, as
            published).
        init_scale: standard deviation of the initial rows (0.01).
    """

    def __init__(self, sizes: Sequence[int], dim: int, *, anneal: float = 5e-5, init_scale: float = 0.01) -> None:
        super().__init__(sizes, dim)
        self.widths = [w for w in (2**k for k in range(1, 32)) if w < dim] + [dim]
        self.anneal, self.temperature = anneal, 1.0
        shape = self.num_ids, len(sizes)
        self.rows = nn.ParameterList(torch.empty(shape[0], w).normal_(std=init_scale) for w in self.widths)
        self.weights = nn.ParameterList(torch.empty(shape[1], w, dim).normal_(std=w**-0.5) for w in self.widths)
        self.biases = nn.ParameterList(torch.zeros(shape[1], dim) for _ in self.widths)
        self.norms = nn.ModuleList(nn.BatchNorm1d(dim, affine=False) for _ in self.widths)
        self.preferences = nn.Parameter(torch.zeros(len(sizes), len(self.widths)))

    @property
    def chosen(self) -> list[int]:
        """The likeliest width of each field."""
        return [self.widths[k] for k in self.preferences.argmax(dim=1).tolist()]

    def forward(self, ids: Tensor) -> Tensor:
        """Return the vectors of global ids."""
        field = self.fields_of(ids)
        if not (self.training and self.searching):
            parts = [partial(self._chosen, f) for f in range(len(self.sizes))]
            return by_group(ids[..., None], field, parts, self.dim)
        noise = -torch.empty_like(self.preferences).exponential_().log()
        share = ((self.preferences.log_softmax(dim=1) + noise) / self.temperature).softmax(dim=1)
        every = torch.stack([self._at_width(k, ids, field) for k in range(len(self.widths))], dim=-2)
        return (every * share[field][..., None]).sum(dim=-2)

    def _at_width(self, k: int, ids: Tensor, field: Tensor) -> Tensor:
        rows = nn.functional.embedding(ids, self.rows[k])  # of all fields: a gradient of this size for each is slow
        found = by_group(rows, field, [partial(self._projected, k, f) for f in range(len(self.sizes))], self.dim)
        return self._normalised(k, found.reshape(-1, self.dim)).view_as(found)

    def _chosen(self, field: int, ids: Tensor) -> Tensor:
        k = self.widths.index(self.chosen[field])
        return self._normalised(k, self._projected(k, field, self.rows[k][ids[:, 0]]))

    def _projected(self, k: int, field: int, rows: Tensor) -> Tensor:
        return rows @ self.weights[k][field] + self.biases[k][field]

    def _normalised(self, k: int, found: Tensor) -> Tensor:
        norm: nn.BatchNorm1d = self.norms[k]  # type: ignore[assignment]
        return batch_norm(norm, found)

    def settle(self) -> None:
        """Keep the likeliest widths; what no field answers with is trained no more, or processes would wait for it."""
        super().settle()
        self.preferences.requires_grad_(False)
        for k, width in enumerate(self.widths):
            for part in (self.rows[k], self.weights[k], self.biases[k]):
                part.requires_grad_(width in self.chosen)

    def after_step(self) -> None:
        """Cool the softmax."""
        self.temperature = max(0.01, self.temperature - self.anneal)

    def train(self, mode: bool = True) -> AutoDimTable:
        """Switch modes; the statistics stay as they are once the search is over."""
        super().train(mode)
        if not self.searching:
            self.norms.eval()
        return self

    @torch.no_grad()
    def served(self) -> Table:
        """Return rows of the chosen widths, the normalisation folded into their projections."""
        table = FieldWidthsTable(self.sizes, self.dim, widths=self.chosen, bias=True).to(self.offsets.device)
        start = 0
        for f, n in enumerate(self.sizes):
            k = self.widths.index(table.widths[f])
            norm: nn.BatchNorm1d = self.norms[k]  # type: ignore[assignment]
            mean, variance = norm.running_mean, norm.running_var
            assert mean is not None
            assert variance is not None
            scale = (variance + norm.eps).rsqrt()
            table.rows[f].copy_(self.rows[k][start : start + n])
            projection: nn.Linear = table.projections[f]  # type: ignore[assignment]
            projection.weight.copy_((self.weights[k][f] * scale).mT)
            projection.bias.copy_((self.biases[k][f] - mean) * scale)
            start += n
        return table.eval()
