"""What is claimed: one card per paper, the topic tree, and the search over both. Reads in milliseconds, no torch."""
