"""Heads: from features to classes."""
