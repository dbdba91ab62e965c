"""The text the shipped models were trained on: what each source is, and its licence."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """One named body of training text."""

    what: str
    licence: str


SOURCES = {
    "sgd_train": Source(
        "Schema-Guided Dialogue: booking, weather, music and more; the turns, extracted",
        "CC-BY-SA-4.0, (c) Google; Rastogi et al. 2019",
    ),
    "star": Source(
        "STAR task dialogues", "MIT, (c) 2020 Rasa Technologies GmbH; Mosig et al. 2020"
    ),
    "tm4": Source("Taskmaster-4: ordering coffee", "CC-BY-4.0, Google; arXiv 2403.10704"),
    "snakes/format-convertion": Source(
        "program-generated: CSV, Markdown and JSON tables", "MIT, (c) 2024 Erik Hyrkas"
    ),
    "snakes/step-by-step-math": Source(
        "program-generated: arithmetic and boolean steps", "MIT, (c) 2024 Erik Hyrkas"
    ),
    "snakes/spelling": Source("program-generated: spelling", "MIT, (c) 2024 Erik Hyrkas"),
    "gsm8k_train": Source("GSM8K: grade-school maths with worked answers", "MIT, (c) OpenAI"),
    "tinystories": Source(
        "TinyStories: short children's stories",
        "CDLA-Sharing-1.0; Eldan & Li, Microsoft, arXiv 2305.07759",
    ),
    "asp_en": Source("African Storybook stories", "CC-BY, each story by its named author"),
    "cpython": Source("Python 3.11 standard library", "PSF-2.0"),
    "pd_books": Source("public-domain children's books", "public domain"),
}


def describe(name: str) -> Source:
    """A source of the shipped models, or a stranger's."""
    unknown = Source("not described", "see whoever gave it to you")
    return SOURCES.get(name, SOURCES.get(name.split("/")[0], unknown))
