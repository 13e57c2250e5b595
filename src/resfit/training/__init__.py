"""From a frozen network and images to a trained classifier: features, heads, pre-training."""
