"""An evaluated drafter as JSON and as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from engine.training.acceptance import COUPLED, REJECTION, Curves
from engine.training.draft_cost import DraftCost
from engine.training.occupancy import Acceptance

RULE_NAMES = {COUPLED: "coupled (shared noise)", REJECTION: "rejection (p/q)"}


@dataclass(frozen=True)
class Report:
    """All figures of a pair, and what they were taken from."""

    verifier: str
    drafter: str
    num_prompts: int
    new_tokens: int
    cost: DraftCost | None
    curves: dict[float, Curves]  # by temperature

    def to_json(self) -> dict[str, Any]:
        acceptance = {
            rule: {
                f"{temperature:g}": {
                    str(length): {name: _record(found) for name, found in sorted(by.items())}
                    for length, by in curves[rule].items()
                }
                for temperature, curves in self.curves.items()
            }
            for rule in next(iter(self.curves.values()))
        }
        cost = None if self.cost is None else asdict(self.cost)
        share = {} if self.cost is None else {"draft_share": self.cost.draft_share}
        return {
            "verifier": self.verifier,
            "drafter": self.drafter,
            "num_prompts": self.num_prompts,
            "new_tokens": self.new_tokens,
            "cost": None if cost is None else cost | share,
            "acceptance": acceptance,
        }

    def to_markdown(self) -> str:
        head = f"{self.num_prompts} prompts, at most {self.new_tokens} tokens each.\n"
        parts = [head, *self._acceptance(), *self._cost()]
        return "\n".join(parts)

    def _acceptance(self) -> Iterator[str]:
        for temperature, curves in self.curves.items():
            longest = max(next(iter(curves.values())))
            yield f"## T = {temperature:g}\n"
            yield "Tokens committed a verify forward, and in brackets draft tokens accepted.\n"
            yield _lengths_table(curves)
            yield f"By source, draft length {longest}:\n"
            yield _sources_table({rule: by[longest] for rule, by in curves.items()})
            yield "Chance that a draft token is accepted, all before it being so:\n"
            yield _places_table({rule: by[longest]["all"] for rule, by in curves.items()})

    def _cost(self) -> Iterator[str]:
        if (cost := self.cost) is None:
            return
        yield "## Cost of one sequence alone\n"
        own, drafter = f"{cost.verifier_parameters:,}", f"{cost.drafter_parameters:,}"
        borrowed = f"{drafter}, and {cost.head_parameters:,} of the verifier's output head"
        head = (f"{cost.verify_head_ms:.2f}", f"{cost.draft_head_ms:.2f}")
        yield _table(
            ("", "parameters", "ms", "of it output head"),
            [
                ("verifier, one row", own, f"{cost.verify_ms:.2f}", head[0]),
                ("verifier, a whole block", own, f"{cost.verify_block_ms:.2f}", ""),
                ("draft of a whole block", borrowed, f"{cost.draft_ms:.2f}", head[1]),
            ],
        )
        yield f"A draft costs {cost.draft_share:.2f} verifier forwards of one row.\n"


def _record(found: Acceptance) -> dict[str, Any]:
    return {
        "num_verifies": round(found.num_verifies, 3),
        "num_committed": round(found.num_committed),
        "num_drafted": round(found.num_drafted, 3),
        "num_accepted": round(found.num_accepted, 3),
        "mean_committed": round(found.mean_committed, 4),
        "mean_accepted": round(found.mean_accepted, 4),
        "by_position": [round(rate, 4) for rate in found.by_position],
    }


def _lengths_table(curves: Curves) -> str:
    lengths = next(iter(curves.values()))
    rows = []
    for length in lengths:
        found = [by_length[length]["all"] for by_length in curves.values()]
        cells = (f"{a.mean_committed:.3f} ({a.mean_accepted:.3f})" for a in found)
        rows.append((str(length), *cells))
    return _table(("draft length", *(RULE_NAMES[rule] for rule in curves)), rows)


def _sources_table(by_rule: dict[str, dict[str, Acceptance]]) -> str:
    first = next(iter(by_rule.values()))
    rows = []
    for name in sorted(first, key=lambda name: (name == "all", name)):
        means = (f"{by_source[name].mean_committed:.3f}" for by_source in by_rule.values())
        rows.append((name, f"{first[name].num_committed:,.0f}", *means))
    return _table(("source", "tokens", *(RULE_NAMES[rule] for rule in by_rule)), rows)


def _places_table(by_rule: dict[str, Acceptance]) -> str:
    depth = max(len(found.reached) for found in by_rule.values())
    head = ("place in the draft", *(str(place + 1) for place in range(depth)))
    return _table(
        head,
        [
            (RULE_NAMES[rule], *(f"{rate:.3f}" for rate in found.by_position))
            for rule, found in by_rule.items()
        ],
    )


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    rule = tuple("---" for _ in head)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows)) + "\n"
