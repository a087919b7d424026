"""Batches of prompts and examples of unequal length."""
