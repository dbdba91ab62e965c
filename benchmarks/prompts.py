"""Prompts in the domains of the shipped models: from a seeded generator, or from a file."""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import IO, Any

from benchmarks.options import Options

Message = dict[str, str]


@dataclass(frozen=True)
class Prompt:
    """A conversation that waits for an answer, or (a story) text that waits to go on."""

    domain: str
    messages: tuple[Message, ...] = ()
    text: str = ""


class PromptFileError(ValueError):
    """A file that holds no prompts of the kind that is wanted."""


def prompts(options: Options, count: int) -> list[Prompt]:
    """The first `count` prompts that the options ask for; equal options give equal prompts."""
    if options.data is None:
        return list(islice(generate(options.seed), count))
    found = read_file(options.data, options.seed)
    if not found:
        raise PromptFileError(f'{options.data}: no line with "text" or "messages" to be answered')
    return [found[index % len(found)] for index in range(count)]


def prompts_of_round(options: Options, at_once: int, number: int) -> list[Prompt]:
    """One closed loop's worth: the same for all cases of a round, and new in every round."""
    count = at_once if options.quick else max(3, at_once)
    return prompts(replace(options, seed=options.seed + 1000 * (number + 1)), count)


def tokens_of_round(options: Options, number: int) -> int:
    """How many tokens to generate for a prompt; a few are enough to warm up."""
    return 16 if options.quick or number < 0 else 128


def generate(seed: int) -> Iterator[Prompt]:
    """Prompts without end: each round holds every domain once, in a new order."""
    rng = Random(seed)
    while True:
        for domain in rng.sample(sorted(_DOMAINS), len(_DOMAINS)):
            made = _DOMAINS[domain](rng)
            if isinstance(made, str):
                yield Prompt(domain, text=made)
            else:
                yield Prompt(domain, messages=_turns(*made))


def read_file(path: Path, seed: int) -> list[Prompt]:
    """Prompts cut from documents: a text's beginning, or a dialogue up to one of its answers."""
    rng = Random(seed)
    with _open_text(path) as lines:
        documents = [json.loads(line) for line in lines if line.strip()]
    rng.shuffle(documents)
    return [prompt for document in documents if (prompt := _cut(document, rng)) is not None]


def _cut(document: dict[str, Any], rng: Random) -> Prompt | None:
    domain = str(document.get("src", "file"))
    if text := document.get("text"):
        words = str(text).split(" ")
        return Prompt(domain, text=" ".join(words[: max(1, min(20, len(words) // 2))]))
    messages: list[Message] = document.get("messages", [])
    answers = [i for i, message in enumerate(messages) if i and message["role"] == "assistant"]
    if not answers:
        return None
    kept = messages[: rng.choice(answers)]
    return Prompt(domain, tuple({"role": m["role"], "content": m["content"]} for m in kept))


def _open_text(path: Path) -> IO[str]:
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _turns(*contents: str) -> tuple[Message, ...]:
    """A conversation that the user begins and in which the user has spoken last."""
    assert len(contents) % 2, "the user must have the last word"
    roles = ("user", "assistant")
    return tuple({"role": roles[i % 2], "content": text} for i, text in enumerate(contents))


_NAMES = (
    "Ben", "Angela", "John", "Sarah", "Mark", "Katarina", "Alexis", "Jane", "Larry", "Mia", "Tim",
    "Lily", "Max", "Anna", "Tom",
)  # fmt: skip
_CITIES = ("Berkeley", "San Jose", "Oakland", "Campbell", "Fremont", "Los Angeles", "Napa")
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_FOODS = ("Italian", "Mexican", "Japanese", "Chinese", "Indian", "Thai", "American", "Korean")
_DRINKS = ("latte", "cappuccino", "mocha", "americano", "macchiato", "chai latte", "iced coffee")
_MILKS = ("whole milk", "oat milk", "almond milk", "soy milk", "non-fat milk")
_WORDS = ("orange", "window", "garden", "planet", "river", "yellow", "kitchen", "bottle", "summer")


def _restaurant(rng: Random) -> list[str]:
    city, food = rng.choice(_CITIES), rng.choice(_FOODS)
    opening = f"I'd like to find a {food} restaurant in {city}."
    if rng.random() < 0.5:
        return [opening]
    people = rng.randint(2, 6)
    return [
        opening,
        f"There are {rng.randint(2, 9)} restaurants in {city}. Would you like to hear about one?",
        f"Yes please. A table for {people} at {rng.randint(5, 9)} pm on {rng.choice(_DAYS)}.",
    ]


def _weather(rng: Random) -> list[str]:
    day, city = rng.choice(_DAYS), rng.choice(_CITIES)
    question = rng.choice(
        ("What will the weather be like", "Is it going to rain", "How warm will it get")
    )
    return [f"{question} in {city} on {day}?"]


def _coffee(rng: Random) -> list[str]:
    size = rng.choice(("small", "medium", "large"))
    drink, milk = rng.choice(_DRINKS), rng.choice(_MILKS)
    return [f"Hi, can I get a {size} {drink} with {milk}, please?"]


def _hotel(rng: Random) -> list[str]:
    nights, city = rng.randint(2, 7), rng.choice(_CITIES)
    return [
        "Hello, I want to book a hotel.",
        "Which city are you going to, and how long will you stay?",
        f"I am going to {city} on {rng.choice(_DAYS)} and will stay {nights} nights.",
    ]


def _party(rng: Random) -> list[str]:
    return [
        f"Hi, I want to organize a party for my friend {rng.choice(_NAMES)}.",
        "At what venue would you like to have your party organised?",
        f"At the North Heights Venue. My name is {rng.choice(_NAMES)} and I expect "
        f"{rng.randint(5, 60)} people on {rng.choice(_DAYS)}.",
    ]


def _story(rng: Random) -> str:
    name, animal = rng.choice(_NAMES), rng.choice(("dog", "cat", "bird", "rabbit", "bear"))
    place = rng.choice(("in the park", "near a big forest", "by the sea", "on a farm"))
    return rng.choice(
        (
            f"Once upon a time, there was a little {animal} named {name}. {name} lived {place}.",
            f"One day, {name} went for a walk with a {animal}. They played {place}.",
            f"{name} was a kind child who loved every {animal}. One sunny morning, {place},",
        )
    )


def _arithmetic(rng: Random) -> list[str]:
    a, b, c = (rng.randint(-99, 99) for _ in range(3))
    first, second = rng.choice("+-*"), rng.choice("+-*")
    return [rng.choice((f"What is ({a} {first} {b}) {second} {c}?", f"What is {a} {first} {b}?"))]


def _spelling(rng: Random) -> list[str]:
    word = rng.choice(_WORDS)
    letter = rng.choice(word)
    return [f"Spell {word}.\nHow many times does {letter} appear in {word}?"]


def _table(rng: Random) -> list[str]:
    rows = [
        f"{rng.choice(_NAMES)},{rng.randint(18, 80)},{rng.choice(_CITIES)}"
        for _ in range(rng.randint(3, 8))
    ]
    return ["Convert this CSV to markdown:\nName,Age,City\n" + "\n".join(rows)]


_DOMAINS: dict[str, Callable[[Random], list[str] | str]] = {
    "restaurant": _restaurant,
    "weather": _weather,
    "coffee": _coffee,
    "hotel": _hotel,
    "party": _party,
    "story": _story,
    "arithmetic": _arithmetic,
    "spelling": _spelling,
    "table": _table,
}
