"""Tasks that a network is fitted to: classification, regression and detection, and how a new one is added."""
