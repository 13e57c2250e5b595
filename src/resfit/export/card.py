"""The model card of an export, as Markdown."""

from __future__ import annotations

from typing import Any

from resfit.export import folder as folders
from resfit.export.base import ExportJob, Written
from resfit.export.verification import Verification

_SHOWN_LABELS = 20


def card(job: ExportJob, written: Written, described: dict[str, Any], verification: Verification, size: int) -> str:
    """Returns the text of ``README.md``.

    Args:
        job: The export.
        written: What its format wrote.
        described: Content of ``contract.json``.
        verification: How it compares with Keras.
        size: Of the network's files in bytes.
    """
    subject = job.subject
    parts = [
        f"# {subject.name}",
        subject.title(described["format"], job.precision, size),
        "## Use",
        f"```python\n{written.usage}```",
        *([" ".join(written.notes)] if written.notes else []),
        "## Input",
        _input(job, described),
        "## Output",
        _output(job, written, described),
        "## Compared with Keras",
        _compared(verification),
        "## Origin",
        _origin(subject.facts),
        "## Files",
        _files(written),
    ]
    return "\n\n".join(parts) + "\n"


def _input(job: ExportJob, described: dict[str, Any]) -> str:
    taken = described["input"]
    sides = zip(taken["axes"], taken["shape"], strict=True)
    shape = ", ".join(axis if side is None else f"{axis} {side}" for axis, side in sides)
    values = f"values {taken['values'][0]} to {taken['values'][1]}" if "values" in taken else "normalised values"
    return (
        f"- `{taken['name']}`: {taken['dtype']} `({shape})`, {taken['channels']}, {values}; "
        f"normalisation {taken['normalisation']}.\n- {folders.resize_rule(job)}"
    )


def _output(job: ExportJob, written: Written, described: dict[str, Any]) -> str:
    lines = []
    for output in described["outputs"]:
        where = f" of `{output['of']}`" if "of" in output else ""
        meaning = output.get("meaning", output["name"])
        lines.append(f"- `{output['name']}`{where}: {output['dtype']}, {meaning}.")
    lines += job.subject.output_lines(written.temperature_applied)
    shown = ", ".join(" ".join(label.split()) for label in job.subject.labels[:_SHOWN_LABELS])
    more = len(job.subject.labels) - _SHOWN_LABELS
    lines.append(f"- Labels, in `{folders.LABELS}`: {shown}{f' and {more} more' if more > 0 else ''}.")
    return "\n".join(lines)


def _compared(found: Verification) -> str:
    lines = [
        f"- The code above was run as it is printed, in {found.runtime}, on {found.source}.",
        *found.lines(),
    ]
    for check in found.checks:
        lines.append(f"- Difference of {check.what}: {check.difference:.1e} {check.unit}".rstrip() + ".")
    if found.other_size is not None:
        lines.append("- Images of another size are refused.")
    if found.no_images is not None:
        lines.append("- A batch of no images gives no scores.")
    lines.append(f"- One image took {found.latency:.1f} ms on the machine that exported it.")
    if found.files:
        lines.append(f"- `{folders.VERIFICATION}` names the images that were compared.")
    return "\n".join(lines)


def _origin(facts: dict[str, Any]) -> str:
    if facts.get("kind") == "detector":
        return _detector(facts)
    if facts.get("kind") == "regressor":
        return _regressor(facts)
    if facts.get("kind") != "classifier":
        return "\n".join([_weights(facts.get("weights")), *(f"- Assumed: {text}" for text in facts["assumptions"])])
    recipe, metrics = facts["recipe"], facts["metrics"]
    lines = [f"- {recipe['model']}, strategy {recipe['strategy']}, head {recipe['head']}, seed {recipe['seed']}."]
    images = metrics.get("images") or {}
    if images:
        lines.append("- Images: " + ", ".join(f"{key} {value}" for key, value in images.items()) + ".")
    test = metrics.get("test")
    for key, words in (("accuracy", "Accuracy"), ("exact_match_accuracy", "Exact-match accuracy (all labels right)")):
        if isinstance(test, dict) and test.get(key) is not None:
            interval = test.get("interval")
            between = f" (95 % interval {interval[0]:.1%} to {interval[1]:.1%})" if interval else ""
            lines.append(f"- {words} on test images that nothing was chosen on: {test[key]:.1%}{between}.")
    lines.append(f"- Fingerprint of the data: `{facts['data']}`.")
    made = ", ".join(f"{name} {version}" for name, version in facts.get("versions", {}).items())
    lines.append(f"- Made with {made}.")
    lines.append(
        "- It tells apart the classes that it was fitted on, on images like those; whatever else it is shown, "
        "it names one of them."
    )
    return "\n".join(lines)


def _regressor(facts: dict[str, Any]) -> str:
    recipe, test = facts["recipe"], facts["metrics"].get("test") or {"numbers": []}
    lines = [f"- {recipe['model']}, strategy {recipe['strategy']}, seed {recipe['seed']}."]
    for score in test["numbers"]:
        figures = ", ".join(
            f"{name.upper()} {score[name]['value']:.4g} (95 % interval {score[name]['low']:.4g} to "
            f"{score[name]['high']:.4g})"
            for name in ("mae", "rmse", "r2")
            if None not in score[name].values()
        )
        lines.append(f"- {score['name']} on {test['n']} test images that nothing was chosen on: {figures}.")
    for name, (low, high) in facts["metrics"].get("ranges", {}).items():
        lines.append(f"- {name} was learned between {low:.6g} and {high:.6g}; beyond that it is extrapolated.")
    lines.append(f"- Fingerprint of the data: `{facts['data']}`.")
    made = ", ".join(f"{name} {version}" for name, version in facts.get("versions", {}).items())
    return "\n".join([*lines, f"- Made with {made}."])


def _detector(facts: dict[str, Any]) -> str:
    recipe, metrics = facts["recipe"], facts["metrics"]
    if recipe["trained"] == "published":
        lines = [_weights(facts.get("weights")), *(f"- Assumed: {text}" for text in facts.get("assumptions", ()))]
        return "\n".join(lines)
    lines = [f"- {recipe['model']}, trained: {recipe['trained']}, seed {recipe['seed']}."]
    test = metrics.get("test")
    if isinstance(test, dict) and test.get("ap") is not None:
        lines.append(f"- Box AP on test images that nothing was chosen on: {test['ap']:.3f}.")
    lines.append(f"- Fingerprint of the data: `{facts['data']}`.")
    lines.append("- It finds objects of the classes that it was fitted on, on images like those.")
    return "\n".join(lines)


def _weights(known: dict[str, Any] | None) -> str:
    if known is None:
        return "- A network as it was loaded. The licence of its weights is that of their publisher."
    data = f", trained on {known['training_data']}" if known["training_data"] else ""
    licence = known["licence"] or "none stated for them"
    lines = [f"- Weights {known['name']} of {known['source']}{data}; licence: {licence}."]
    if known.get("ap") is not None:
        lines.append(f"- Published box AP: {known['ap']:g} % on {known['evaluated_on']}.")
    if known.get("top1") is not None:
        at = f" at {known['eval_size']} pixels" if known["eval_size"] else ""
        lines.append(f"- Published accuracy: {known['top1']:g} % on {known['evaluated_on']}{at}.")
    return "\n".join(lines)


def _files(written: Written) -> str:
    named = ", ".join(f"`{name}`" for name in written.files)
    return (
        f"- {named}: the network.\n"
        f"- `{folders.CONTRACT}`: input, output, labels and temperature for programs. `{folders.LABELS}`: the labels.\n"
        f"- `{folders.VERIFICATION}`: the comparison above for programs.\n"
        f"- `{folders.SUMS}`: check with `sha256sum -c {folders.SUMS}`."
    )
