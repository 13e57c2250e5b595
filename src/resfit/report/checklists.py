"""Items of the reporting guidelines TRIPOD+AI and CLAIM, in short words of our own, and what fills them.

The numbers are those of the guidelines, whose full text is what a study has to follow: Collins et al. 2024, BMJ 385,
e078378; Mongan, Moy and Kahn 2020, Radiology: AI 2, e200029.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

#: What stands where a run cannot know.
OPEN = "to be filled in"


@dataclasses.dataclass(frozen=True)
class ChecklistItem:
    """One item of a guideline.

    Attributes:
        number: In the guideline.
        topic: What is to be reported.
        fact: The name of what a run knows about it; empty where it knows nothing.
    """

    number: str
    topic: str
    fact: str = ""


@dataclasses.dataclass(frozen=True)
class Filled:
    """An item with what is known about it.

    Attributes:
        item: The item.
        text: What the run knows; empty where a person has to fill it in.
    """

    item: ChecklistItem
    text: str


def fill(items: tuple[ChecklistItem, ...], facts: Mapping[str, str]) -> tuple[Filled, ...]:
    """Fills items with what a run knows.

    Args:
        items: Of a guideline.
        facts: Text by name.
    """
    return tuple(Filled(item, facts.get(item.fact, "")) for item in items)


TRIPOD_AI = (
    ChecklistItem("1", "Title: that a prediction model is developed or evaluated, for whom, and what it predicts"),
    ChecklistItem("2", "Abstract with the guideline's own items"),
    ChecklistItem("3a", "The clinical setting, why the model is needed, and earlier models"),
    ChecklistItem("3b", "Whom the model is for, where in their care, and who is to use it"),
    ChecklistItem("3c", "Known differences in health between groups of people"),
    ChecklistItem("4", "Aims: development, evaluation or both", "aim"),
    ChecklistItem("5a", "Where the data comes from, and whom it stands for", "data"),
    ChecklistItem("5b", "From when to when the data was collected"),
    ChecklistItem("6a", "Kind, number and place of the centres"),
    ChecklistItem("6b", "Who was eligible"),
    ChecklistItem("6c", "Treatments, if any"),
    ChecklistItem("7", "How the data was prepared, alike for all groups", "preparation"),
    ChecklistItem("8a", "What is predicted and how it was found out", "outcome"),
    ChecklistItem("8b", "Who judged the outcome, and their training"),
    ChecklistItem("8c", "Whether they were blinded"),
    ChecklistItem("9a", "Why these predictors", "predictors"),
    ChecklistItem("9b", "How predictors were measured", "input"),
    ChecklistItem("9c", "Who judged predictors, where that is a matter of judgement"),
    ChecklistItem("10", "How the sample size was arrived at", "size"),
    ChecklistItem("11", "What was done about missing data", "missing"),
    ChecklistItem("12a", "How the data was used and split", "split"),
    ChecklistItem("12b", "How predictors entered the model", "input"),
    ChecklistItem("12c", "Kind of model, how it was built and tuned, and how it was validated internally", "training"),
    ChecklistItem("12d", "How differences between clusters were dealt with", "groups"),
    ChecklistItem("12e", "Which measures of performance, and why", "measures"),
    ChecklistItem("12f", "Whether the model was updated", "updating"),
    ChecklistItem("12g", "How predictions were computed in the evaluation", "prediction"),
    ChecklistItem("13", "How unequal class sizes were dealt with", "balance"),
    ChecklistItem("14", "What was done for fairness", "fairness"),
    ChecklistItem("15", "What the model puts out, and where thresholds come from", "output"),
    ChecklistItem("16", "How the evaluation data differs from that of the development", "difference"),
    ChecklistItem("17", "Ethical approval and consent"),
    ChecklistItem("18a", "Funding"),
    ChecklistItem("18b", "Interests of the authors"),
    ChecklistItem("18c", "Where the protocol is"),
    ChecklistItem("18d", "Registration"),
    ChecklistItem("18e", "Whether the data is shared"),
    ChecklistItem("18f", "Whether the code is shared", "software"),
    ChecklistItem("19", "How patients and the public took part"),
    ChecklistItem("20a", "How many people and images entered and left", "flow"),
    ChecklistItem("20b", "What they are like, with what is missing", "characteristics"),
    ChecklistItem("20c", "How they compare with those of the development", "difference"),
    ChecklistItem("21", "Number of images and of outcomes in each analysis", "events"),
    ChecklistItem("22", "The whole model, so that others can use it", "model"),
    ChecklistItem("23a", "Performance with intervals, by groups of people too", "performance"),
    ChecklistItem("23b", "Differences in performance between clusters", "fairness"),
    ChecklistItem("24", "Results of updating", "updating"),
    ChecklistItem("25", "What the results mean, fairness included"),
    ChecklistItem("26", "Limits of the study"),
    ChecklistItem("27a", "How poor or missing input is to be handled in use", "poor_input"),
    ChecklistItem("27b", "What users do, and what they must know"),
    ChecklistItem("27c", "What comes next"),
)

CLAIM = (
    ChecklistItem("1", "Title: that AI was used, and of what kind"),
    ChecklistItem("2", "Abstract: design, methods, results, conclusions"),
    ChecklistItem("3", "Background, intended use and clinical role"),
    ChecklistItem("4", "Aims and hypotheses", "aim"),
    ChecklistItem("5", "Prospective or retrospective"),
    ChecklistItem("6", "Goal of the study"),
    ChecklistItem("7", "Sources of the data", "data"),
    ChecklistItem("8", "Eligibility: how, where and when people or images were chosen"),
    ChecklistItem("9", "Preprocessing", "preparation"),
    ChecklistItem("10", "Selected parts of the images", "input"),
    ChecklistItem("11", "Definitions of data elements"),
    ChecklistItem("12", "De-identification"),
    ChecklistItem("13", "What was done about missing data", "missing"),
    ChecklistItem("14", "The reference standard, so that it can be repeated", "outcome"),
    ChecklistItem("15", "Why this reference standard"),
    ChecklistItem("16", "Who annotated, with what training"),
    ChecklistItem("17", "Tools of the annotation"),
    ChecklistItem("18", "Agreement between and within annotators"),
    ChecklistItem("19", "Intended sample size, and how it was found", "size"),
    ChecklistItem("20", "How the data was split, in what shares", "split"),
    ChecklistItem("21", "What is kept apart by the split (images, studies, patients)", "groups"),
    ChecklistItem("22", "The model in detail: input, layers, output", "model"),
    ChecklistItem("23", "Software, with versions", "software"),
    ChecklistItem("24", "Initial weights", "initial"),
    ChecklistItem("25", "Training in detail", "training"),
    ChecklistItem("26", "How the final model was chosen", "selection"),
    ChecklistItem("27", "Ensembles", "ensemble"),
    ChecklistItem("28", "Measures of performance", "measures"),
    ChecklistItem("29", "Measures of uncertainty", "uncertainty"),
    ChecklistItem("30", "Robustness", "robustness"),
    ChecklistItem("31", "Explainability", "explanation"),
    ChecklistItem("32", "Testing on data from elsewhere", "external"),
    ChecklistItem("33", "Flow of people or images", "flow"),
    ChecklistItem("34", "Demographic and clinical characteristics, in each part", "characteristics"),
    ChecklistItem("35", "Performance in all parts of the data", "performance"),
    ChecklistItem("36", "Diagnostic accuracy with its precision", "performance"),
    ChecklistItem("37", "What failed: images that were classified wrongly", "failures"),
    ChecklistItem("38", "Limits of the study"),
    ChecklistItem("39", "What it means for practice"),
    ChecklistItem("40", "Registration"),
    ChecklistItem("41", "Where protocol, data and code can be had", "software"),
    ChecklistItem("42", "Funding"),
)
