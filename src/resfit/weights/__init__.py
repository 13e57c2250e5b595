"""Weights from any source, as arrays under one canonical naming."""
