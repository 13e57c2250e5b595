"""Graphs of other programs than ONNX as steps on maps of features: Keras' configurations, TensorFlow's graphs."""
