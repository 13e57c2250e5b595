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
class Item:
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

    item: Item
    text: str


def fill(items: tuple[Item, ...], facts: Mapping[str, str]) -> tuple[Filled, ...]:
    """Fills items with what a run knows.

    Args:
        items: Of a guideline.
        facts: Text by name.
    """
    return tuple(Filled(item, facts.get(item.fact, "")) for item in items)


TRIPOD_AI = (
    Item("1", "Title: that a prediction model is developed or evaluated, for whom, and what it predicts"),
    Item("2", "Abstract with the guideline's own items"),
    Item("3a", "The clinical setting, why the model is needed, and earlier models"),
    Item("3b", "Whom the model is for, where in their care, and who is to use it"),
    Item("3c", "Known differences in health between groups of people"),
    Item("4", "Aims: development, evaluation or both", "aim"),
    Item("5a", "Where the data comes from, and whom it stands for", "data"),
    Item("5b", "From when to when the data was collected"),
    Item("6a", "Kind, number and place of the centres"),
    Item("6b", "Who was eligible"),
    Item("6c", "Treatments, if any"),
    Item("7", "How the data was prepared, alike for all groups", "preparation"),
    Item("8a", "What is predicted and how it was found out", "outcome"),
    Item("8b", "Who judged the outcome, and their training"),
    Item("8c", "Whether they were blinded"),
    Item("9a", "Why these predictors", "predictors"),
    Item("9b", "How predictors were measured", "input"),
    Item("9c", "Who judged predictors, where that is a matter of judgement"),
    Item("10", "How the sample size was arrived at", "size"),
    Item("11", "What was done about missing data", "missing"),
    Item("12a", "How the data was used and split", "split"),
    Item("12b", "How predictors entered the model", "input"),
    Item("12c", "Kind of model, how it was built and tuned, and how it was validated internally", "training"),
    Item("12d", "How differences between clusters were dealt with", "groups"),
    Item("12e", "Which measures of performance, and why", "measures"),
    Item("12f", "Whether the model was updated", "updating"),
    Item("12g", "How predictions were computed in the evaluation", "prediction"),
    Item("13", "How unequal class sizes were dealt with", "balance"),
    Item("14", "What was done for fairness", "fairness"),
    Item("15", "What the model puts out, and where thresholds come from", "output"),
    Item("16", "How the evaluation data differs from that of the development", "difference"),
    Item("17", "Ethical approval and consent"),
    Item("18a", "Funding"),
    Item("18b", "Interests of the authors"),
    Item("18c", "Where the protocol is"),
    Item("18d", "Registration"),
    Item("18e", "Whether the data is shared"),
    Item("18f", "Whether the code is shared", "software"),
    Item("19", "How patients and the public took part"),
    Item("20a", "How many people and images entered and left", "flow"),
    Item("20b", "What they are like, with what is missing", "characteristics"),
    Item("20c", "How they compare with those of the development", "difference"),
    Item("21", "Number of images and of outcomes in each analysis", "events"),
    Item("22", "The whole model, so that others can use it", "model"),
    Item("23a", "Performance with intervals, by groups of people too", "performance"),
    Item("23b", "Differences in performance between clusters", "fairness"),
    Item("24", "Results of updating", "updating"),
    Item("25", "What the results mean, fairness included"),
    Item("26", "Limits of the study"),
    Item("27a", "How poor or missing input is to be handled in use", "poor_input"),
    Item("27b", "What users do, and what they must know"),
    Item("27c", "What comes next"),
)

CLAIM = (
    Item("1", "Title: that AI was used, and of what kind"),
    Item("2", "Abstract: design, methods, results, conclusions"),
    Item("3", "Background, intended use and clinical role"),
    Item("4", "Aims and hypotheses", "aim"),
    Item("5", "Prospective or retrospective"),
    Item("6", "Goal of the study"),
    Item("7", "Sources of the data", "data"),
    Item("8", "Eligibility: how, where and when people or images were chosen"),
    Item("9", "Preprocessing", "preparation"),
    Item("10", "Selected parts of the images", "input"),
    Item("11", "Definitions of data elements"),
    Item("12", "De-identification"),
    Item("13", "What was done about missing data", "missing"),
    Item("14", "The reference standard, so that it can be repeated", "outcome"),
    Item("15", "Why this reference standard"),
    Item("16", "Who annotated, with what training"),
    Item("17", "Tools of the annotation"),
    Item("18", "Agreement between and within annotators"),
    Item("19", "Intended sample size, and how it was found", "size"),
    Item("20", "How the data was split, in what shares", "split"),
    Item("21", "What is kept apart by the split (images, studies, patients)", "groups"),
    Item("22", "The model in detail: input, layers, output", "model"),
    Item("23", "Software, with versions", "software"),
    Item("24", "Initial weights", "initial"),
    Item("25", "Training in detail", "training"),
    Item("26", "How the final model was chosen", "selection"),
    Item("27", "Ensembles", "ensemble"),
    Item("28", "Measures of performance", "measures"),
    Item("29", "Measures of uncertainty", "uncertainty"),
    Item("30", "Robustness", "robustness"),
    Item("31", "Explainability", "explanation"),
    Item("32", "Testing on data from elsewhere", "external"),
    Item("33", "Flow of people or images", "flow"),
    Item("34", "Demographic and clinical characteristics, in each part", "characteristics"),
    Item("35", "Performance in all parts of the data", "performance"),
    Item("36", "Diagnostic accuracy with its precision", "performance"),
    Item("37", "What failed: images that were classified wrongly", "failures"),
    Item("38", "Limits of the study"),
    Item("39", "What it means for practice"),
    Item("40", "Registration"),
    Item("41", "Where protocol, data and code can be had", "software"),
    Item("42", "Funding"),
)
