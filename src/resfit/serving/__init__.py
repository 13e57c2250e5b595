"""A classifier on the wire: an HTTP server that clients of TensorFlow Serving and of Triton already know, and a page.

``settings`` says what may be asked of it, ``folders`` and ``repository`` which models and versions there are,
``pipeline`` and ``batching`` how images become answers, ``tfserving``, ``inference_v2`` and ``people`` how they are
asked for, ``limits`` what is refused before anything is done, and ``server`` how it starts and ends without losing a
request.
"""
