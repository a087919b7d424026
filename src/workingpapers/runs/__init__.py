"""How it was measured: runs in processes of their own, a store that loses nothing, fair comparison, plots."""
