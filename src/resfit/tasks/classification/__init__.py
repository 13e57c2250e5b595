"""The trained thing: fit it on a folder of images, ask it, measure it, keep it."""

from resfit.tasks.classification.classifier import Classifier
from resfit.tasks.classification.embedding import embed
from resfit.tasks.classification.fit import fit, plan
from resfit.tasks.classification.results import FitRecipe, FitRun, Prediction

__all__ = ["Classifier", "FitRecipe", "FitRun", "Prediction", "embed", "fit", "plan"]
