"""The map of compressed embedding tables: families, and which options keep a method to a budget.

    sharing by hashing (`compressed_hash`)        hash, qr, robe, dhe, adaptive
    low rank (`compressed_low_rank`)              tt, mixed-dim, autodim
    sharing that is learnt (`compressed_coded`)   dpq, mgqe, dedup
    pruning (`compressed_pruned`)                 deeplight, pep, autosrh
    rounding (`compressed_quantized`)             quantized (8 or 16 bits), alpt

These, with `optembed`, are the switches of the study's code. Sharing reaches any budget; what shrinks every row stops
near a 32nd. A table tells `training_bytes` (parameters, codes and masks; an optimiser adds its own) and
`serving_bytes`, which are those of `served()`: learnt codes, pruning and rounding save memory in service alone. The
baseline that should never be missing is a plainly narrower table, `full` at a smaller width.

Source: Zhang et al., "Experimental Analysis of Large-scale Learnable Vector Storage Compression", PVLDB 17(4), 2024,
arXiv 2311.15578, and the authors' code in Hetu (tools/EmbeddingMemoryCompression).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workingpapers.errors import UserError, unknown_name
from workingpapers.methods.tables.compressed_parts import FLOAT, floats_within, out_of_reach

FAMILIES: dict[str, tuple[str, ...]] = {
    "sharing by hashing": ("hash", "qr", "robe", "dhe", "adaptive"),
    "low rank": ("tt", "mixed-dim", "autodim"),
    "sharing that is learnt": ("dpq", "mgqe", "dedup"),
    "pruning": ("deeplight", "pep", "autosrh"),
    "rounding": ("quantized", "alpt"),
}
METHODS = tuple(name for family in FAMILIES.values() for name in family)
FIND_THEIR_SIZE = ("autodim", "pep")


def options_at(name: str, sizes: Sequence[int], dim: int, ratio: float) -> dict[str, Any]:
    """Return options of a table that serves from at most r times the bytes of a full one.

    Args:
        name: one of `METHODS`.
        sizes: n_f; dim: d.
        ratio: r, above 0 and at most 1.

    Raises:
        UserError: no method has that name, or it finds its own size.
        ValueError: a ratio that is out of its range, or of the method's reach (methods with an option `ratio` say so
            when the table is made).
    """
    if name not in METHODS:
        raise unknown_name("compressed table", name, METHODS)
    if name in FIND_THEIR_SIZE:
        raise UserError(f"The table {name!r} finds its own size in training and keeps to no ratio.")
    num_ids = sum(sizes)
    allowed = FLOAT * floats_within(ratio, num_ids, dim)
    if name in ("quantized", "alpt"):
        step = FLOAT * num_ids if name == "alpt" else FLOAT
        choices = [({"bits": bits}, num_ids * dim * bits // 8 + step) for bits in (16, 8)]
    elif name in ("dpq", "mgqe"):
        choices = _coded(name, sizes, dim)
    else:
        return {"ratio": ratio}
    for options, held in choices:
        if held <= allowed:
            return options
    raise out_of_reach(name, ratio, min(held for _, held in choices) / (FLOAT * num_ids * dim))


def _coded(name: str, sizes: Sequence[int], dim: int) -> list[tuple[dict[str, Any], int]]:
    """Return the numbers of parts that a width allows, most first, and the bytes of codes and keys."""
    num_ids, most, made = sum(sizes), 8 if name == "dpq" else 4, []
    for parts in (p for p in range(most, 0, -1) if dim % p == 0):
        if name == "dpq":
            held = num_ids * -(-parts * 5 // 8) + 32 * dim * FLOAT
        else:
            heads = sum(-(-n // 10) for n in sizes)
            index = 3 * 8 * len(sizes)
            held = heads * parts + (num_ids - heads) * -(-parts * 6 // 8) + 256 * dim * FLOAT + index
        made.append(({"parts": parts}, held))
    return made
