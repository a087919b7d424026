"""Detectors that learn from normal data only."""
