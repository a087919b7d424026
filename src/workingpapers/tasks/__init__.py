"""Does it work: one module per task, with its protocol, its baselines and its entries."""
