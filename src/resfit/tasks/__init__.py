"""Tasks that a network is fitted to."""
