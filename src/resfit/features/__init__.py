"""Features of images: computed once by the frozen network, and kept."""
