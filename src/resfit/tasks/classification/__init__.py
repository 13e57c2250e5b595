"""Image classification: fit a classifier to a folder of images, predict, evaluate, save."""

from resfit.tasks.base import FitRun
from resfit.tasks.classification.classifier import Classifier
from resfit.tasks.classification.embedding import embed
from resfit.tasks.classification.fit import fit, plan
from resfit.tasks.classification.results import FitRecipe, Prediction

__all__ = ["Classifier", "FitRecipe", "FitRun", "Prediction", "embed", "fit", "plan"]
