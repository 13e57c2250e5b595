"""Old names of modules and classes, which stay importable for one release with a DeprecationWarning."""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
import types
import warnings
from collections.abc import Sequence
from typing import Any

#: Old module -> the module that has its content.
MODULES = {
    "resfit.architecture": "resfit.networks",
    "resfit.architecture.arithmetic": "resfit.networks.arithmetic",
    "resfit.architecture.blocks": "resfit.networks.blocks",
    "resfit.architecture.catalog": "resfit.networks.catalog",
    "resfit.architecture.layers": "resfit.networks.layers",
    "resfit.architecture.network": "resfit.networks.build",
    "resfit.architecture.plan": "resfit.networks.plan",
    "resfit.architecture.pruned": "resfit.networks.pruned",
    "resfit.architecture.spec": "resfit.networks.spec",
    "resfit.cache": "resfit.storage.locks",
    "resfit.checking": "resfit.quality.checking",
    "resfit.checkpoints": "resfit.weights",
    "resfit.checkpoints.archives": "resfit.weights.archives",
    "resfit.checkpoints.attention": "resfit.weights.attention",
    "resfit.checkpoints.canonical": "resfit.weights.canonical",
    "resfit.checkpoints.convert": "resfit.weights.load",
    "resfit.checkpoints.download": "resfit.weights.download",
    "resfit.checkpoints.haiku_namings": "resfit.weights.conventions.haiku",
    "resfit.checkpoints.handles": "resfit.weights.resolve",
    "resfit.checkpoints.identify": "resfit.weights.identify",
    "resfit.checkpoints.keras_namings": "resfit.weights.conventions.keras",
    "resfit.checkpoints.labels": "resfit.weights.labels",
    "resfit.checkpoints.namings": "resfit.weights.conventions.pytorch",
    "resfit.checkpoints.onnx_graph": "resfit.weights.graph",
    "resfit.checkpoints.onnx_graph.constants": "resfit.weights.graph.onnx_constants",
    "resfit.checkpoints.onnx_graph.features": "resfit.weights.graph.onnx_features",
    "resfit.checkpoints.onnx_graph.fields": "resfit.weights.graph.fields",
    "resfit.checkpoints.onnx_graph.layout": "resfit.weights.graph.onnx_layout",
    "resfit.checkpoints.onnx_graph.lift": "resfit.weights.graph.lift_onnx",
    "resfit.checkpoints.onnx_graph.simplify": "resfit.weights.graph.simplify",
    "resfit.checkpoints.onnx_graph.steps": "resfit.weights.graph.steps",
    "resfit.checkpoints.onnx_graph.structure": "resfit.weights.graph.structure",
    "resfit.checkpoints.onnx_graph.translate": "resfit.weights.graph.translate",
    "resfit.checkpoints.readers": "resfit.weights.formats",
    "resfit.checkpoints.readers.base": "resfit.weights.formats.base",
    "resfit.checkpoints.readers.hdf5": "resfit.weights.formats.hdf5",
    "resfit.checkpoints.readers.hdf5_child": "resfit.weights.formats.hdf5_child",
    "resfit.checkpoints.readers.keras_archive": "resfit.weights.formats.keras_archive",
    "resfit.checkpoints.readers.keras_config": "resfit.weights.formats.keras_config",
    "resfit.checkpoints.readers.keras_h5": "resfit.weights.formats.keras_h5",
    "resfit.checkpoints.readers.keras_weights": "resfit.weights.formats.keras_weights",
    "resfit.checkpoints.readers.kerashub": "resfit.weights.formats.kerashub",
    "resfit.checkpoints.readers.npz": "resfit.weights.formats.npz",
    "resfit.checkpoints.readers.onnx": "resfit.weights.formats.onnx",
    "resfit.checkpoints.readers.pickled": "resfit.weights.formats.pickled",
    "resfit.checkpoints.readers.safetensors": "resfit.weights.formats.safetensors",
    "resfit.checkpoints.readers.saved_graph": "resfit.weights.formats.saved_graph",
    "resfit.checkpoints.readers.saved_model": "resfit.weights.formats.saved_model",
    "resfit.checkpoints.readers.tf_bundle": "resfit.weights.formats.tf_bundle",
    "resfit.checkpoints.readers.torch": "resfit.weights.formats.torch",
    "resfit.checkpoints.readers.wire": "resfit.weights.formats.wire",
    "resfit.checkpoints.registry": "resfit.weights.registry",
    "resfit.checkpoints.store": "resfit.weights.fetch",
    "resfit.checkpoints.tf_habits": "resfit.weights.conventions.tf_defaults",
    "resfit.checkpoints.tf_namings": "resfit.weights.conventions.tensorflow",
    "resfit.checkpoints.tf_objects": "resfit.weights.conventions.tf_objects",
    "resfit.checkpoints.tfhub": "resfit.weights.tfhub",
    "resfit.checkpoints.write": "resfit.weights.write",
    "resfit.classifier": "resfit.tasks.classification",
    "resfit.classifier.account": "resfit.tasks.classification.fit_report",
    "resfit.classifier.choices": "resfit.tasks.fit_plan",
    "resfit.classifier.embedded": "resfit.tasks.classification.embedding",
    "resfit.classifier.fitting": "resfit.tasks.classification.fit",
    "resfit.classifier.inputs": "resfit.data.inputs",
    "resfit.classifier.journal": "resfit.tasks.timings",
    "resfit.classifier.learner": "resfit.tasks.classification.fit_pipeline",
    "resfit.classifier.learning": "resfit.tasks.classification.finetuning",
    "resfit.classifier.material": "resfit.tasks.classification.data_preparation",
    "resfit.classifier.narrow": "resfit.tasks.classification.reduced_precision",
    "resfit.classifier.networks": "resfit.tasks.backbone",
    "resfit.classifier.outcome": "resfit.tasks.classification.results",
    "resfit.classifier.stored": "resfit.tasks.classification.saving",
    "resfit.classifier.trained": "resfit.tasks.classification.classifier",
    "resfit.cli.asking": "resfit.cli.inputs",
    "resfit.cli.shown": "resfit.cli.formatting",
    "resfit.data.checks": "resfit.data.image_statistics",
    "resfit.data.codestreams": "resfit.data.medical.codestreams",
    "resfit.data.cohort": "resfit.data.medical.cohort",
    "resfit.data.deep": "resfit.data.high_bit_depth",
    "resfit.data.dicom": "resfit.data.medical.dicom",
    "resfit.data.dicomdir": "resfit.data.medical.dicomdir",
    "resfit.data.display": "resfit.data.medical.display",
    "resfit.data.frames": "resfit.data.medical.frames",
    "resfit.data.image_set": "resfit.data.dataset",
    "resfit.data.nifti": "resfit.data.medical.nifti",
    "resfit.data.privacy": "resfit.data.medical.privacy",
    "resfit.data.quiet": "resfit.data.medical.log_filter",
    "resfit.data.scans": "resfit.data.medical.scans",
    "resfit.evaluation.corruptions": "resfit.evaluation.robustness",
    "resfit.evaluation.foreign": "resfit.evaluation.ood_evaluation",
    "resfit.evaluation.judged": "resfit.evaluation.inference",
    "resfit.evaluation.kept": "resfit.evaluation.reference_selection",
    "resfit.evaluation.references": "resfit.evaluation.reference_images",
    "resfit.evaluation.resampling": "resfit.evaluation.intervals",
    "resfit.evaluation.unlike": "resfit.evaluation.ood",
    "resfit.export.picture": "resfit.export.comparison_plot",
    "resfit.export.subject": "resfit.export.export_model",
    "resfit.files": "resfit.storage.atomic",
    "resfit.holdings": "resfit.cache_kinds",
    "resfit.housekeeping": "resfit.cache_kinds",
    "resfit.published": "resfit.tasks.classification.pretrained",
    "resfit.serving.people": "resfit.serving.rest_api",
    "resfit.transfer": "resfit.training",
    "resfit.transfer.augment": "resfit.training.augment",
    "resfit.transfer.boundary": "resfit.training.boundary",
    "resfit.transfer.calibrations": "resfit.features.calibrations",
    "resfit.transfer.convolution": "resfit.training.convolution",
    "resfit.transfer.curves": "resfit.training.curves",
    "resfit.transfer.digests": "resfit.features.digests",
    "resfit.transfer.features": "resfit.features.extract",
    "resfit.transfer.feeds": "resfit.training.feeds",
    "resfit.transfer.finetune": "resfit.training.trainer",
    "resfit.transfer.folding": "resfit.training.bn_folding",
    "resfit.transfer.head_layers": "resfit.tasks.classification.heads.layers",
    "resfit.transfer.heads": "resfit.tasks.classification.heads.base",
    "resfit.transfer.linear": "resfit.tasks.classification.heads.linear",
    "resfit.transfer.logits": "resfit.numerics",
    "resfit.transfer.mlp": "resfit.tasks.classification.heads.mlp",
    "resfit.transfer.pretrain": "resfit.training.pretrain",
    "resfit.transfer.prototypes": "resfit.tasks.classification.heads.few_shot",
    "resfit.transfer.recipes": "resfit.training.recipes",
    "resfit.transfer.records": "resfit.features.records",
    "resfit.transfer.solver": "resfit.tasks.classification.heads.solver",
    "resfit.transfer.storage": "resfit.features.pixels",
    "resfit.transfer.store": "resfit.features.store",
    "resfit.transfer.strategies": "resfit.tasks.classification.finetuning",
    "resfit.transfer.training": "resfit.training.loop",
    "resfit.transfer.tuning": "resfit.training.settings",
}

#: Module -> old name in it -> new name.
NAMES = {
    "resfit.cache_kinds": {"Item": "CacheEntry", "Kind": "CacheKind"},
    "resfit.data.decode": {"Header": "ImageHeader"},
    "resfit.data.high_bit_depth": {"Picture": "HighBitDepthImage"},
    "resfit.data.image_statistics": {"Looks": "ImageIssues", "looks": "image_issues"},
    "resfit.data.medical.cohort": {"Entry": "CohortEntry"},
    "resfit.data.medical.dicom": {"Header": "DicomHeader"},
    "resfit.engines.compiled": {"Entry": "CompiledEntry"},
    "resfit.evaluation.inference": {"Judged": "LabelledPredictions"},
    "resfit.evaluation.ood": {"Unlike": "OODDetector"},
    "resfit.evaluation.ood_evaluation": {"Foreign": "OODEvaluation"},
    "resfit.evaluation.reference_images": {"turns": "sampling_order"},
    "resfit.explain.graph": {"Graph": "ExplainableGraph"},
    "resfit.explain.neighbours": {"References": "NeighbourSource"},
    "resfit.export.base": {"Format": "ExportFormat", "Job": "ExportJob"},
    "resfit.export.export_model": {"Subject": "ExportModel"},
    "resfit.features.extract": {"Job": "ExtractionJob"},
    "resfit.features.pixels": {"Decoded": "DecodedPixels"},
    "resfit.features.records": {"Sights": "DecodeStatistics"},
    "resfit.quality.checking": {"together": "group_duplicates"},
    "resfit.report.checklists": {"Item": "ChecklistItem"},
    "resfit.report.pictures": {"Picture": "ReportPicture"},
    "resfit.serving.adapter": {"Explanation": "ServedExplanation"},
    "resfit.serving.folders": {"Found": "FoundModel"},
    "resfit.serving.settings": {"Settings": "ServerSettings"},
    "resfit.tasks.classification": {"Recipe": "FitRecipe"},
    "resfit.tasks.classification.data_preparation": {"Material": "TrainingData"},
    "resfit.tasks.classification.finetuning": {"Kept": "FitResult"},
    "resfit.tasks.classification.fit_pipeline": {"Learner": "FitPipeline"},
    "resfit.tasks.fit_plan": {"Choice": "FitPlan", "within_time": "subsample_to_budget"},
    "resfit.tasks.classification.heads.few_shot": {"Neighbours": "KNNHead", "NearestMean": "NearestMeanHead"},
    "resfit.tasks.classification.reduced_precision": {"Corrected": "CorrectedRows"},
    "resfit.tasks.classification.results": {"Recipe": "FitRecipe"},
    "resfit.tasks.timings": {"Journal": "Timings"},
    "resfit.training.loop": {"Checkpoint": "TrainingCheckpoint", "ahead": "prefetch"},
    "resfit.training.pretrain": {"Settings": "PretrainSettings"},
    "resfit.training.runs": {"Running": "RunOptions"},
    "resfit.training.trainer": {"Learned": "TrainingHistory"},
    "resfit.weights.conventions.tf_defaults": {"Habits": "ProgramDefaults", "Found": "FoundProgram"},
    "resfit.weights.formats.onnx": {"Graph": "OnnxGraph"},
    "resfit.weights.formats.tf_bundle": {"Checkpoint": "BundleCheckpoint"},
    "resfit.weights.graph.onnx_constants": {"Unfit": "UnsupportedOperationError"},
    "resfit.weights.graph.structure": {"Misfit": "UnsupportedGraphError", "Shortcut": "BlockShortcut"},
    "resfit.weights.load": {"Format": "WeightsFormat"},
}


class _MovedModules:
    """Imports an old module as a view of the new one."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Finds modules of the table alone."""
        if fullname not in MODULES:
            return None
        package = any(name.startswith(f"{fullname}.") for name in MODULES)
        return importlib.machinery.ModuleSpec(fullname, self, is_package=package)  # type: ignore[arg-type]

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        """Leaves it to Python to make the module."""

    def exec_module(self, module: types.ModuleType) -> None:
        """Warns, and looks every name up in the new module."""
        new = MODULES[module.__name__]
        warnings.warn(
            f"{module.__name__} has moved to {new}; the old name will be removed in the next release.",
            DeprecationWarning,
            stacklevel=2,
        )
        renamed = NAMES.get(new, {})

        def attribute(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
            return getattr(importlib.import_module(new), renamed.get(name, name))

        module.__getattr__ = attribute  # type: ignore[method-assign]


def install() -> None:
    """Makes the old modules importable. A second call changes nothing."""
    if not any(isinstance(finder, _MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(_MovedModules())
