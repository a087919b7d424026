"""Embedding tables for categorical data: smaller ones, shared ones, pruned ones."""
