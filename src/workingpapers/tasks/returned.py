"""What entries return: checked before it is scored, so that what is none of it gets a clear error and no number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workingpapers.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def check_returned(found: object, what: str, *names: str) -> None:
    """Refuse what an entry returned if it lacks what the task is about to use.

    Args:
        found: what the entry returned.
        what: what it must return, "a fitted classifier".
        names: attributes that it must have.

    Raises:
        UserError: says what was returned, the first attribute that it lacks, and what is needed.
    """
    missing = [name for name in names if not hasattr(found, name)]
    if missing:
        kind = f"the class {found.__name__}" if isinstance(found, type) else f"a {type(found).__name__}"
        given = "None" if found is None else f"{kind}, which has no {missing[0]!r}"
        raise UserError(f"The entry returned {given}; it must return {what} with {' and '.join(names)}.")


def checked_probabilities(found: Any, shape: tuple[int, int]) -> NDArray[Any]:
    """Return the probabilities (N, K) that an entry's classifier gave.

    Raises:
        UserError: another shape, a value outside 0 to 1, NaN included, or a row that does not sum to 1.
    """
    import numpy as np

    given = np.asarray(found)
    if given.shape != shape:
        raise UserError(
            f"predict_proba returned an array of shape {given.shape}; needed: {shape}, a row for each example and a "
            "column for each class."
        )
    bad = given[~((given >= -0.001) & (given <= 1.001))]  # so much may be rounding in half precision
    if bad.size:
        raise UserError(f"predict_proba returned {bad[0]}; probabilities are from 0 to 1.")
    sums = given.sum(axis=1, dtype=np.float64)
    worst = sums[np.abs(sums - 1).argmax()]
    if abs(worst - 1) > 0.01:
        raise UserError(f"predict_proba returned a row that sums to {worst:.4g}; the sum over the classes must be 1.")
    return given
