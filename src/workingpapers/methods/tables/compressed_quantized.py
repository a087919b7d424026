"""Tables whose entries are stored as integers of 8 or 16 bits.

    quantized  q = round(e / step), clipped to the integers of b bits; the vector is step * q
    alpt       the same, with a learnt step for every row

Training rounds at random, up with the probability of the fraction, so that the mean of what is read is the entry
itself; gradients pass straight through. Eval mode rounds to the nearest. The entries themselves stay float32 while
training: only service is smaller.

The gradient of a step is q - e / step where nothing is clipped and q where something is, scaled by
1 / sqrt(n d (2^(b-1) - 1)) for n lookups.

Source: as in `compressed_hash`; in turn Xu et al. 2021 (stochastic rounding of embeddings) and Li et al. 2023 (ALPT).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.methods.tables.common import Table
from workingpapers.methods.tables.compressed_parts import vectors

_TYPES = {8: torch.int8, 16: torch.int16}


class QuantizedTable(Table):
    """Rows of integers with one fixed step.

    Args:
        sizes, dim: see `Table`.
        bits: 8 or 16 (8).
        step: between neighbouring values (0.01, as in the study); 8 bits hold entries from -1.28 to 1.27 then.
        init_scale: standard deviation of the initial vectors (0.01).
    """

    def __init__(
        self, sizes: Sequence[int], dim: int, *, bits: int = 8, step: float = 0.01, init_scale: float = 0.01
    ) -> None:
        super().__init__(sizes, dim)
        if bits not in _TYPES or not step > 0:
            raise ValueError(f"bits is {bits} and step {step}; bits is 8 or 16, and step above 0")
        self.bits, self.step = bits, float(step)  # of a whole number the table served would be one of integers
        self.table = vectors(self.num_ids, dim, init_scale)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the vectors of global ids."""
        rows: Tensor = self.table(ids)
        read = rounded(rows / self.step, self.bits, at_random=self.training) * self.step
        return rows + (read - rows).detach()

    @torch.no_grad()
    def served(self) -> Table:
        """Return the integers."""
        codes = rounded(self.table.weight / self.step, self.bits).to(_TYPES[self.bits])
        return IntegerTable(self.sizes, codes, torch.tensor([[self.step]], device=codes.device))


class ALPTTable(Table):
    """Rows of integers with a learnt step each.

    Args:
        sizes, dim: see `Table`.
        bits: 8 or 16 (8).
        step: at which the steps start (0.01, as published).
        step_rate: learning rate of the steps (2e-5, as published).
        init_scale: standard deviation of the initial vectors (0.01).
    """

    def __init__(
        self,
        sizes: Sequence[int],
        dim: int,
        *,
        bits: int = 8,
        step: float = 0.01,
        step_rate: float = 2e-5,
        init_scale: float = 0.01,
    ) -> None:
        super().__init__(sizes, dim)
        if bits not in _TYPES or not step > 0 or not step_rate > 0:
            raise ValueError(f"bits is {bits}, step {step}, step_rate {step_rate}; bits is 8 or 16, the others above 0")
        self.bits, self.step_rate = bits, step_rate
        self.table = vectors(self.num_ids, dim, init_scale)
        self.steps = nn.Parameter(torch.full((self.num_ids, 1), float(step)))

    def groups(self) -> list[dict[str, Any]]:
        """Return the steps, with their learning rate and no decay."""
        return [{"params": [self.steps], "lr": self.step_rate, "weight_decay": 0.0}]

    def forward(self, ids: Tensor) -> Tensor:
        """Return the vectors of global ids."""
        rows: Tensor = self.table(ids)
        step = _positive(self.steps[ids])
        factor = max(1, rows.numel() * (2 ** (self.bits - 1) - 1)) ** -0.5
        step = step * factor + (step * (1 - factor)).detach()
        ratio = rows / step
        code = rounded(ratio.detach(), self.bits, at_random=self.training)
        # Straight through the rounding to entry and step, and to the step alone where it clips.
        clipped = ratio.detach().floor() != code
        clipped &= ratio.detach().ceil() != code
        inner = ratio + (code - ratio).detach()
        return torch.where(clipped, code, inner) * step

    @torch.no_grad()
    def served(self) -> Table:
        """Return the integers and their steps."""
        steps = _positive(self.steps)
        codes = rounded(self.table.weight / steps, self.bits).to(_TYPES[self.bits])
        return IntegerTable(self.sizes, codes, steps)


class IntegerTable(Table):
    """Integers, and what one of them is worth.

    Args:
        sizes: see `Table`.
        codes: (N, d) int8 or int16.
        steps: (N, 1) or (1, 1).
    """

    codes: Tensor
    steps: Tensor

    def __init__(self, sizes: Sequence[int], codes: Tensor, steps: Tensor) -> None:
        super().__init__(sizes, codes.shape[1])
        self.register_buffer("codes", codes)
        self.register_buffer("steps", steps)
        self.to(codes.device)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the vectors of global ids."""
        step = self.steps[ids] if len(self.steps) > 1 else self.steps[0]
        return self.codes[ids] * step


def rounded(x: Tensor, bits: int, *, at_random: bool = False) -> Tensor:
    """Return integers of b bits, as floats: the nearest, or floor(x + u) with u uniform, whose mean is x."""
    whole = torch.floor(x + torch.rand_like(x)) if at_random else torch.round(x)
    return whole.clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _positive(steps: Tensor) -> Tensor:
    return steps.clamp(min=1e-8)  # Adam may carry a step past zero, where it would mean nothing
