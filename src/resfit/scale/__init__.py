"""Work on more images than one machine can hold: planned in shards, run on any engine, gathered when it has ended."""

from resfit.scale.finishing import finish
from resfit.scale.planning import Plan, load, plan
from resfit.scale.probe import fit_features
from resfit.scale.running import run
from resfit.scale.state import status
from resfit.scale.training import fit_on_ray, pretrain_on_ray
from resfit.scale.unit import Unit

__all__ = [
    "Plan",
    "Unit",
    "finish",
    "fit_features",
    "fit_on_ray",
    "load",
    "plan",
    "pretrain_on_ray",
    "run",
    "status",
]
