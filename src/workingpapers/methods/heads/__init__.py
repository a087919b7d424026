"""Classifier heads on frozen features."""
