"""What is known of the data, the model and the run, as rows of a table, and as facts for the guidelines."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from typing import Any

from resfit import artifact, devices, processors
from resfit.evaluation.figures import Figures
from resfit.report.findings import Findings
from resfit.report.templates import plain

Rows = list[tuple[str, str]]


def percent(value: float) -> str:
    """Returns a share in percent with one digit."""
    return f"{100 * value:.1f} %"


def data_card(findings: Findings) -> Rows:
    """Returns what is known of the images that were measured, and of those that were learned from."""
    judged, metrics = findings.judged, findings.classifier.metrics
    counts = judged.targets.sum(axis=0).astype(int)
    images = metrics.get("images", {})
    learned = ", ".join(f"{count} {name}" for name, count in images.items())
    rows = [
        ("measured on", plain(findings.source) + (f", part {findings.part!r}" if findings.part else "")),
        ("images", f"{len(judged.images)} used, {len(judged.skipped)} skipped"),
        ("images of each class", ", ".join(f"{plain(n)} {c}" for n, c in zip(judged.classes, counts, strict=True))),
        ("SHA-256 of the evaluation data", judged.images.fingerprint),
        ("images of the fit", learned or "not recorded"),
        ("SHA-256 of the training data", findings.classifier.fingerprint),
        ("groups", _groups(findings)),
        ("also used to fit the classifier", _familiar(findings)),
    ]
    rows += [(f"skipped: {plain(item.reason)}", str(count)) for item, count in _reasons(judged.skipped)]
    rows += _checks(metrics)
    return rows


def model_card(findings: Findings) -> Rows:
    """Returns what is known of the classifier."""
    classifier = findings.classifier
    recipe, contract = classifier.recipe, classifier.input_spec
    model = classifier.model
    kept = "none kept" if classifier.references is None else f"{len(classifier.references.labels)} kept, without names"
    rows = [
        ("network", plain(recipe.model)),
        ("parameters", f"{model.count_params():,}"),
        ("classes", ", ".join(plain(name) for name in classifier.classes)),
        ("strategy", f"{recipe.strategy} (asked for: {recipe.asked or recipe.strategy})"),
        ("head", recipe.head + (f", {recipe.regularisation}" if recipe.regularisation else "")),
        ("input", f"{contract.size[1]} x {contract.size[0]} pixels, {contract.channels} channels"),
        ("resizing", f"{contract.resize_mode}, {contract.interpolation}, crop {contract.crop_fraction:g}"),
        ("seed of the fit", str(recipe.seed)),
        ("temperature", _temperature(findings)),
        ("training images for examples", kept),
    ]
    tested = classifier.metrics.get("test") or {}
    for name, words in (("accuracy", "accuracy"), ("exact_match_accuracy", "exact-match accuracy (all labels right)")):
        if name in tested:
            low, high = tested["interval"]
            text = f"{percent(tested[name])} ({percent(low)} to {percent(high)}) on {tested['n']} images"
            rows.append((f"{words} measured by the fit", text))
    for name, value in (recipe.tuning or {}).items():
        if value not in (None, False, 0, 0.0, [], ()):
            rows.append((f"tuning: {name.replace('_', ' ')}", plain(value)))
    return rows


def run_card(findings: Findings) -> Rows:
    """Returns where and how it was measured."""
    from resfit.tasks.preparation import package_versions

    now = package_versions()
    fitted = findings.classifier.versions
    rows = [
        ("written", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())),
        ("machine", f"{platform.system()} {platform.machine()}, {processors.available()} processors"),
        ("device", devices.told(devices.current().to_dict())),
        ("engine", f"{findings.judged.engine}; {findings.judged.computed} images computed now, the others cached"),
        ("seed", str(findings.seed)),
        ("resamples", f"{findings.figures.resamples} of {findings.figures.units} "
                      f"{'groups' if findings.figures.grouped else 'images'}"),
    ]  # fmt: skip
    if machine := findings.classifier.metrics.get("machine"):
        rows.append(("fitted on", devices.told(machine)))
    rows += [(f"seconds: {name}", f"{value:.1f}") for name, value in findings.seconds.items()]
    for name, version in now.items():
        other = fitted.get(name)
        rows.append((name, version if other in (None, version) else f"{version} (fitted with {other})"))
    return rows


def facts(findings: Findings, explained: str) -> dict[str, str]:
    """Returns what the run can say to the items of the guidelines.

    Args:
        findings: What was measured.
        explained: How explanations were made; empty where there are none.
    """
    classifier, judged, figures = findings.classifier, findings.judged, findings.figures
    recipe, images = classifier.recipe, classifier.metrics.get("images", {})
    counts = judged.targets.sum(axis=0).astype(int)
    events = ", ".join(f"{plain(n)} {c}" for n, c in zip(judged.classes, counts, strict=True))
    subgroups = ", ".join(plain(name) for name in findings.subgroups)
    separately = ", ".join(f"{count} {name}" for name, count in images.items())
    unit = "groups of images (such as patients)" if figures.grouped else "images"
    found = {
        "aim": "This run evaluates a classifier; what it is for has to be filled in.",
        "data": f"{len(judged.images)} images of {plain(findings.source)!r}, digest {judged.images.fingerprint[:16]}; "
                "their origin has to be filled in.",
        "preparation": f"Decoded and resized to {classifier.input_spec.size[1]} x {classifier.input_spec.size[0]} "
                       f"({classifier.input_spec.resize_mode}, {classifier.input_spec.interpolation}); the same for "
                       "every image.",
        "outcome": f"{'Any' if judged.multilabel else 'One'} of: {', '.join(plain(name) for name in judged.classes)}. "
                   "How labels were found out has to be filled in.",
        "predictors": "The pixels of the image alone.",
        "input": f"Pixels of {classifier.input_spec.size[1]} x {classifier.input_spec.size[0]} with "
                 f"{classifier.input_spec.channels} channels, values 0..255.",
        "size": f"{len(judged.images)} images; the intervals say how much that tells. Why so many has to be filled in.",
        "missing": f"{len(judged.skipped)} unusable images were left out, counted by reason; nothing was imputed.",
        "split": f"The fit used {separately} images, seed {recipe.seed}." if separately else "",
        "training": f"{recipe.strategy} on {plain(recipe.model)}, {recipe.head} head, seed {recipe.seed}; "
                    f"{recipe.folds or 'no'} folds of cross-validation.",
        "selection": "The regularisation was chosen by cross-validation, the epoch of a fine-tuning on validation "
                     "images; test images chose nothing.",
        "initial": f"Weights of {plain(recipe.model)}.",
        "ensemble": "None.",
        "groups": f"Groups were kept on one side of the split{'' if recipe.grouped else ': no groups were given'}; "
                  f"resamples draw {unit}.",
        "measures": "Accuracy, balanced accuracy, precision, recall, F1, MCC, AUROC, AUPRC, sensitivity at a fixed "
                    "specificity, log-loss, Brier score, calibration error.",
        "uncertainty": f"95 % intervals by {figures.resamples} bootstrap resamples of {figures.units} {unit}, "
                       f"seed {findings.seed}; Wilson's for shares of 0 or 1.",
        "updating": "The model was not updated after the fit.",
        "prediction": f"By the saved model as it is: {'sigmoid' if judged.multilabel else 'softmax'} of logits over "
                      "the temperature.",
        "balance": f"Images of each class: {events}. Balanced accuracy and macro means count classes alike.",
        "fairness": f"Figures by {subgroups} are in this report." if subgroups else "",
        "output": f"A probability for each class, calibrated by a temperature of {classifier.temperature:.3f}; "
                  f"thresholds at {percent(figures.specificity)} specificity are listed.",
        "flow": f"{len(judged.images) + len(judged.skipped)} images found, {len(judged.skipped)} left out, "
                f"{len(judged.images)} measured.",
        "events": events,
        "model": "The classifier's folder holds the whole network with its weights, its input contract and its digest.",
        "software": ", ".join(f"{name} {version}" for name, version in classifier.versions.items()),
        "performance": _performance(figures),
        "failures": f"{round((1 - findings.evaluation.accuracy) * len(judged.images))} images are classified "
                    "wrongly; the most confident of them are shown.",
        "poor_input": "Images that cannot be decoded are refused with a reason; images unlike the training images are "
                      "flagged." if findings.flagged is not None else "",
        "explanation": f"{explained} of mistakes and of the least confident correct predictions." if explained else "",
        "robustness": "" if findings.robustness is None else
                      f"Mean accuracy {percent(findings.robustness.mean_accuracy)} over corruptions in five strengths.",
    }  # fmt: skip
    return {name: text for name, text in found.items() if text}


def _performance(figures: Figures) -> str:
    parts = []
    for name in ("accuracy", "exact_match_accuracy", "balanced_accuracy", "auroc_macro", "f1_macro"):
        if name in figures.overall:
            found = figures.overall[name]
            parts.append(f"{name.replace('_', ' ')} {found.value:.3f} ({found.low:.3f} to {found.high:.3f})")
    return "; ".join(parts)


def _temperature(findings: Findings) -> str:
    found = findings.classifier.calibration
    if not found.count:
        return f"{found.temperature:.3f} (not fitted)"
    effect = found.effect
    return (
        f"{found.temperature:.3f}, fitted by {found.source} on {found.count} images: log-loss "
        f"{effect['before']['log_loss']:.3f} before, {effect['after']['log_loss']:.3f} after"
    )


def _groups(findings: Findings) -> str:
    if findings.judged.groups is None:
        return "none given"
    return f"{findings.figures.units} groups and single images; they are drawn whole for the intervals"


def _familiar(findings: Findings) -> str:
    if not findings.classifier.attachment(artifact.FITTED_IMAGES):
        return "not known: the classifier does not state them"
    count = findings.familiar
    return f"{count}" + (": this is no independent measurement" if count else "")


def _reasons(skipped: Any) -> list[tuple[Any, int]]:
    by_reason: dict[str, list[Any]] = {}
    for item in skipped:
        by_reason.setdefault(item.reason, []).append(item)
    ordered = sorted(by_reason.values(), key=lambda items: -len(items))[:10]
    return [(items[0], len(items)) for items in ordered]


_CHECKED = {
    "exact_duplicates": "groups of exact copies",
    "near_duplicates": "pairs of near duplicates",
    "leaks": "images in both training and test set",
    "conflicting_labels": "pairs of duplicates with different labels",
    "label_errors": "labels worth a look",
    "blank": "blank images",
    "dark": "dark images",
    "bright": "bright images",
    "blurred": "blurred images",
    "odd": "images of odd size or shape",
}


def _checks(metrics: Mapping[str, Any]) -> Rows:
    """Returns the summary of the data checks that a fit left in the metrics."""
    found = metrics.get("checks")
    if not isinstance(found, Mapping):
        return []
    reasons = found.get("not_run") or {}
    rows: Rows = []
    for key, words in _CHECKED.items():
        listed = found.get(key)
        if key in reasons:
            rows.append((f"data check: {words}", f"not checked: {plain(reasons[key])}"))
        elif isinstance(listed, Mapping) and isinstance(listed.get("count"), int):
            rows.append((f"data check: {words}", str(listed["count"])))
    if isinstance(found.get("imbalance"), int | float):
        rows.append(("data check: images of the largest class for one of the smallest", f"{found['imbalance']:.1f}"))
    marks, shortcuts = found.get("marks"), found.get("shortcuts")
    if isinstance(marks, list):
        rows.append(("data check: marks on many images of one class", str(len(marks))))
    if "shortcuts" in reasons:
        rows.append(("data check: shortcuts", f"not checked: {plain(reasons['shortcuts'])}"))
    elif isinstance(shortcuts, list):
        strong = [plain(item.get("cue", "")) for item in shortcuts if item.get("strong")]
        rows.append(("data check: shortcuts", ", ".join(strong) or "none"))
    return rows
