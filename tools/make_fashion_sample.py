"""Makes src/resfit/samples/fashion_mnist.zip from the published Fashion-MNIST files.

    python tools/make_fashion_sample.py /usr/share/datasets/fashion-mnist

The files are those of https://github.com/zalandoresearch/fashion-mnist (Debian: dataset-fashion-mnist). The sample is
balanced: of each class the first 170 training images in a seeded order, and 30 test images. Running it again gives
the same bytes.
"""

from __future__ import annotations

import gzip
import io
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = (
    "T-shirt",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
PARTS = (("train", "train", 170), ("test", "t10k", 30))
TARGET = Path(__file__).parent.parent / "src" / "resfit" / "samples" / "fashion_mnist.zip"
NOTICE = """A balanced sample of Fashion-MNIST: 170 training and 30 test images of each class, as PNG files.

Fashion-MNIST: Han Xiao, Kashif Rasul, Roland Vollgraf, arXiv:1708.07747.
https://github.com/zalandoresearch/fashion-mnist

The MIT License (MIT)

Copyright (c) 2017 Zalando SE, https://tech.zalando.com

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def read(folder: Path, stem: str) -> tuple[np.ndarray, np.ndarray]:
    images = gzip.decompress((folder / f"{stem}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{stem}-labels-idx1-ubyte.gz").read_bytes())
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8, offset=8)


def main(folder: Path) -> None:
    with zipfile.ZipFile(TARGET, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo("NOTICE.txt"), NOTICE)
        for part, stem, count in PARTS:
            images, labels = read(folder, stem)
            order = np.random.default_rng(0).permutation(len(labels))
            for label, name in enumerate(CLASSES):
                for number, index in enumerate(np.sort(order[labels[order] == label][:count])):
                    buffer = io.BytesIO()
                    Image.fromarray(images[index]).save(buffer, "PNG", optimize=True)
                    archive.writestr(zipfile.ZipInfo(f"{part}/{name}/{number:03d}.png"), buffer.getvalue())
    print(TARGET.name, TARGET.stat().st_size, "bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
