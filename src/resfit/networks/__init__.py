"""What a residual network is: its spec, its arithmetic, its Keras layers and the catalog of known ones."""
