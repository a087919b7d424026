"""Search: full text, sentence embeddings, and the two fused."""
