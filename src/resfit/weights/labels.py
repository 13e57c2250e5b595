"""Names of the classes that published classifiers tell apart.

A set of labels has a name, which the rows of the registry refer to. Those of ImageNet are WordNet's: a compressed table
beside this module lists the synsets with the first of their words, and which sets they belong to.
"""

from __future__ import annotations

import functools
import gzip
from importlib import resources

from resfit.errors import UnknownNameError, closest

#: What stands at index 0 of classifiers that were trained by TF-Slim and its successors.
BACKGROUND = "background"

_CIFAR_10 = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR_100 = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle "
    "caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant "
    "flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man "
    "maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree "
    "plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper "
    "snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train "
    "trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)

# COCO's ids of 1 to 90 have ten gaps; what stands for nothing is named so, as torchvision does.
_COCO_91 = (
    "__background__;person;bicycle;car;motorcycle;airplane;bus;train;truck;boat;traffic light;fire hydrant;N/A;"
    "stop sign;parking meter;bench;bird;cat;dog;horse;sheep;cow;elephant;bear;zebra;giraffe;N/A;backpack;umbrella;N/A;"
    "N/A;handbag;tie;suitcase;frisbee;skis;snowboard;sports ball;kite;baseball bat;baseball glove;skateboard;"
    "surfboard;tennis racket;bottle;N/A;wine glass;cup;fork;knife;spoon;bowl;banana;apple;sandwich;orange;broccoli;"
    "carrot;hot dog;pizza;donut;cake;chair;couch;potted plant;bed;N/A;dining table;N/A;N/A;toilet;N/A;tv;laptop;mouse;"
    "remote;keyboard;cell phone;microwave;oven;toaster;sink;refrigerator;N/A;book;clock;vase;scissors;teddy bear;"
    "hair drier;toothbrush"
)

#: Names of outputs of a detector that stand for no class.
NO_CLASS = ("__background__", "N/A")

# Sets whose classes are WordNet's synsets in the order of their ids, and the letter that marks their lines.
_WORDNET = {"imagenet-1k": "k", "imagenet-12k": "m", "imagenet-21k": "g", "tiny-imagenet": "t"}
_WORDS = {"cifar-10": _CIFAR_10.split(), "cifar-100": _CIFAR_100.split(), "coco-91": _COCO_91.split(";")}
_WORDS["coco-90"] = _WORDS["coco-91"][1:]
_WORDS["coco-80"] = [name for name in _WORDS["coco-91"] if name not in NO_CLASS]
_SHIFTED = {"imagenet-1k-background": "imagenet-1k"}

#: Every set that :func:`of` knows.
NAMES = (*_WORDNET, *_SHIFTED, *_WORDS)


def of(name: str) -> tuple[str, ...]:
    """Returns the labels of a set, in the order of a classifier's outputs.

    Args:
        name: ``"imagenet-1k"`` (1000 classes), ``"imagenet-1k-background"`` (the same behind a background class),
            ``"imagenet-12k"`` (timm's 11,821), ``"imagenet-21k"`` (BiT's 21,843), ``"tiny-imagenet"`` (200 in the
            order of their ids), ``"cifar-10"``, ``"cifar-100"``, ``"coco-80"``, ``"coco-91"`` (the outputs of
            torchvision's detectors: COCO's ids, with a background at 0 and gaps, :data:`NO_CLASS`), or ``"coco-90"``
            (the same without the background).

    Returns:
        The first word of each synset of ImageNet. Within the thousand they differ; among the 21,843 some do not.

    Raises:
        UnknownNameError: There is no such set.

    Example:
        >>> of("imagenet-1k")[281]
        'tabby'
    """
    if name in _WORDS:
        return tuple(_WORDS[name])
    if name in _SHIFTED:
        return (BACKGROUND, *of(_SHIFTED[name]))
    return tuple(word for _, word in _synsets(name))


def wordnet_ids(name: str) -> tuple[str, ...]:
    """Returns the WordNet ids of a set of ImageNet's, in the order of a classifier's outputs.

    Args:
        name: ``"imagenet-1k"``, ``"imagenet-12k"``, ``"imagenet-21k"`` or ``"tiny-imagenet"``.

    Raises:
        UnknownNameError: There is no such set, or its classes are no synsets.
    """
    return tuple(identifier for identifier, _ in _synsets(name))


@functools.cache
def _synsets(name: str) -> tuple[tuple[str, str], ...]:
    if name not in _WORDNET:
        raise UnknownNameError(f"labels must be of one of the sets {NAMES}. Received: {name!r}.{closest(name, NAMES)}")
    letter = _WORDNET[name]
    packed = resources.files("resfit.weights").joinpath("wordnet.tsv.gz").read_bytes()
    lines = (line.split("\t") for line in gzip.decompress(packed).decode("utf-8").splitlines())
    return tuple((identifier, word) for identifier, letters, word in lines if letter in letters)
