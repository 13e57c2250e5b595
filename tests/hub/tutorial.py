"""A tutorial as it is found everywhere: a module of TensorFlow Hub, two dense layers, compile, fit.

The tests run it as it stands, and with the one import changed. Usage: ``tutorial.py MODULE DATA.npz RESULTS.npz``
"""

import sys

import numpy as np
import tensorflow as tf
import tensorflow_hub as hub

module, data, results = sys.argv[1:4]
with np.load(data) as arrays:
    images, labels = arrays["images"].astype("float32") / 255, arrays["labels"]
    head = [arrays[f"head_{number}"] for number in range(4)]

feature_extractor = hub.KerasLayer(module, input_shape=images.shape[1:], trainable=False)
model = tf.keras.Sequential(
    [
        feature_extractor,
        tf.keras.layers.Dense(1024, activation="relu"),
        tf.keras.layers.Dense(10, activation="softmax"),
    ]
)
model.layers[1].set_weights(head[:2])  # so that runs can be compared
model.layers[2].set_weights(head[2:])
model.compile(
    optimizer=tf.keras.optimizers.Adam(learning_rate=0.001),
    loss="sparse_categorical_crossentropy",
    metrics=["accuracy"],
)
history = model.fit(images, labels, batch_size=32, epochs=3, shuffle=False, verbose=0)

feature_extractor.trainable = True
model.compile(optimizer=tf.keras.optimizers.SGD(0.001), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
tuned = model.fit(images, labels, batch_size=32, epochs=1, shuffle=False, verbose=0)

np.savez(
    results,
    losses=history.history["loss"] + tuned.history["loss"],
    accuracies=history.history["accuracy"] + tuned.history["accuracy"],
    predictions=model.predict(images, verbose=0),
)
