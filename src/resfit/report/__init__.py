"""Pages about data and classifiers that open from disk, without a network."""
