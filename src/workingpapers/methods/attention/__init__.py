"""Attention for long inputs: variants of the attention function, and the door by which they enter a model."""
