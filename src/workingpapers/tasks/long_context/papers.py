"""The papers of `long-context` that read with a finished model, and what belongs beside them."""

from __future__ import annotations

from workingpapers.tasks.long_context.material import Given, Reader, largest
from workingpapers.tasks.long_context.settings import task
from workingpapers.tasks.protocol import Context

FIRST_TOKENS = 10  # of LM-Infinite, as published


@task.entry("standard", "equal-budget", "passkey", "extrapolation", paper="lm-infinite", needs=["trained"])
def lm_infinite(given: Given, context: Context) -> Reader:
    """The last tokens and the first ten, the latter never farther away than the window."""
    from workingpapers.methods.attention.lm_infinite import apply, score_entries

    window = given.window(FIRST_TOKENS)
    apply(given.model, n_local=window, n_global=FIRST_TOKENS)
    return Reader(given.model, lambda length: score_entries(length, window, FIRST_TOKENS))


@task.entry("standard", "equal-budget", "passkey", paper="hyper-attention")
def hyper_attention(given: Given, context: Context) -> Reader:
    """Hashed blocks and as many sampled keys, exact below an eighth of the length (HyperAttention)."""
    return _hyper(given, blocks=1, samples=1)


@task.entry("standard", "equal-budget")
def sampling_only(given: Given, context: Context) -> Reader:
    """HyperAttention without its blocks: all budget goes to sampled keys."""
    return _hyper(given, blocks=0, samples=2)


@task.entry("equal-budget")
def hashed_blocks_only(given: Given, context: Context) -> Reader:
    """HyperAttention without its sample: all budget goes to hashed blocks."""
    return _hyper(given, blocks=2, samples=0)


def _hyper(given: Given, *, blocks: int, samples: int) -> Reader:
    from workingpapers.methods.attention.hyper import HyperAttention, apply_hyper_attention

    def sized(size: int) -> HyperAttention:
        # Published with pieces of 4,096 of 32,768 tokens left exact: an eighth.
        exact = max(2, given.length // 8)
        return HyperAttention(
            block_size=blocks * size, sample_size=samples * size, min_seq_len=exact, seed=1_000 * given.seed
        )

    hyper = sized(largest(lambda size: sized(size).score_entries(given.length), given))
    apply_hyper_attention(given.model, hyper)
    return Reader(given.model, hyper.score_entries)


@task.entry("extrapolation", paper="softplus-attention")
def softplus_attention(given: Given, context: Context) -> Reader:
    """Trained with softplus attention, re-weighted with power 15."""
    return _softplus(given, context, 15.0)


@task.entry("extrapolation", paper="softplus-attention")
def softplus_attention_plain(given: Given, context: Context) -> Reader:
    """Trained with softplus attention without re-weighting."""
    return _softplus(given, context, None)


def _softplus(given: Given, context: Context, power: float | None) -> Reader:
    from workingpapers.methods.attention.softplus import apply_softplus_attention
    from workingpapers.tasks.long_context.byte_model import fit

    model = apply_softplus_attention(given.model, power=power)
    return Reader(fit(model, given.tokens, given.steps, given.seed, log=context.log))


@task.entry("standard", "equal-budget", "passkey", paper="hip-attention")
def hip_attention(given: Given, context: Context) -> Reader:
    """The last tokens, the first ones, and more that a tree search finds for each block of queries (HiP)."""
    from workingpapers.methods.attention.hip import HiPAttention, apply
    from workingpapers.tasks.long_context.patterns import BLOCKS

    def sized(window: int) -> HiPAttention:
        # Published as 512 found keys, 128 last and 16 first ones, and blocks of 32 queries for longer texts.
        blocks = min(32, max(1, given.length // BLOCKS))
        return HiPAttention(top_k=4 * window, window=window, sinks=max(1, window // 8), block_q=blocks)

    hip = sized(largest(lambda size: sized(size).score_entries(given.length), given))
    # The authors leave the first layers dense; here every layer has to do with the same share.
    apply(given.model, hip, dense_layers=0)
    return Reader(given.model, hip.score_entries)


@task.entry("standard", "equal-budget", "passkey", paper="minference")
def minference(given: Given, context: Context) -> Reader:
    """Columns and diagonals, blocks, or first and last tokens: chosen per head, found anew for each text."""
    from workingpapers.methods.attention.minference import apply
    from workingpapers.tasks.long_context.patterns import searched

    choice, entries = searched(given)
    return Reader(apply(given.model, choice), entries)


@task.entry("equal-budget", "passkey", paper="minference")
def minference_as_run(given: Given, context: Context) -> Reader:
    """The same search; heads of other shapes run with columns and diagonals too, as in the authors' code."""
    from workingpapers.methods.attention.minference import apply
    from workingpapers.tasks.long_context.patterns import searched

    choice, entries = searched(given, as_run=True)
    return Reader(apply(given.model, choice), entries)


@task.entry("equal-budget")
def minference_static(given: Given, context: Context) -> Reader:
    """The same shapes with the columns, diagonals and blocks of one training text kept for all others."""
    from workingpapers.methods.attention.minference import apply, freeze
    from workingpapers.tasks.long_context.patterns import searched

    choice, entries = searched(given)
    return Reader(apply(given.model, freeze(given.model, given.tokens[None], choice)), entries)


@task.entry("equal-budget")
def a_shape(given: Given, context: Context) -> Reader:
    """First and last tokens in every head, in MInference's proportions."""
    from workingpapers.methods.attention.minference import apply, everywhere
    from workingpapers.tasks.long_context.patterns import a_shape_cost, block_size, candidates

    shape = candidates(given)[0]
    choice = everywhere(given.model, shape, block_size=block_size(given))
    return Reader(apply(given.model, choice), lambda length: a_shape_cost(shape, length, block_size(given)))
