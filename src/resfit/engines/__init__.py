"""How a forward pass is run: one file a runtime, all with the same call."""
