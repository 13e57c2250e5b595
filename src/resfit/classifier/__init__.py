"""The trained thing: fit it on a folder of images, ask it, measure it, keep it."""

from resfit.classifier.embedded import embed
from resfit.classifier.fitting import fit, plan
from resfit.classifier.outcome import FitRun, Prediction, Recipe
from resfit.classifier.trained import Classifier

__all__ = ["Classifier", "FitRun", "Prediction", "Recipe", "embed", "fit", "plan"]
