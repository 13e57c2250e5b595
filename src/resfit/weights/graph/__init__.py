"""From a graph of ONNX to a residual network: operations, composites, blocks, and the architecture."""
