"""Real tokens of padded rows, by counting them one by one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workingpapers.methods.attention.padding import first_real, real_pieces

rows = st.integers(1, 9).flatmap(
    lambda S: st.lists(st.tuples(st.integers(0, S), st.integers(0, S)), min_size=1).map(
        lambda spans: torch.tensor([[a <= j < b for j in range(S)] for a, b in spans])
    )
)


@given(rows, st.integers(0, 9))
def test_rows_are_cut_to_their_real_tokens(key_mask, T):
    batch, S = key_mask.shape
    T = min(T, S)
    for found, row in zip(first_real(key_mask).tolist(), key_mask.tolist(), strict=True):
        assert found == (row.index(True) if any(row) else S)
    positions = torch.arange(S)
    pieces = real_pieces(torch.zeros(batch, 1, T, 2), torch.zeros(batch, 1, S, 2), key_mask)
    seen = {
        row.start: (positions[S - T :][queries].tolist(), positions[keys].tolist()) for row, queries, keys in pieces
    }
    expected = {}
    for b, real in enumerate(key_mask.tolist()):
        keys = [j for j in range(S) if real[j]]
        if keys and keys[-1] >= S - T:
            expected[b] = [j for j in keys if j >= S - T], keys
    assert seen == expected


def test_bad_masks_are_refused():
    q = torch.zeros(2, 1, 3, 2)
    with pytest.raises(ValueError, match=r"rows \[1\] have padding between"):
        first_real(torch.tensor([[True, True, False], [True, False, True]]))
    for mask in (torch.ones(2, 4, dtype=torch.bool), torch.ones(2, 3)):
        with pytest.raises(ValueError, match=r"key_mask must be boolean \(B, S\) = \(2, 3\)"):
            real_pieces(q, q, mask)
