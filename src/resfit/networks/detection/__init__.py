"""Networks of dense detectors: what one is, its anchors and boxes, its Keras model, and non-maximum suppression."""
