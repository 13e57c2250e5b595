"""Detectors for other runtimes: suppression in the graph, and verification by matched boxes."""
