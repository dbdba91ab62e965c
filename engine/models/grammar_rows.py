"""Grammars on logits: rows of the verifier get masks, tokens of a draft are drawn anew."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from engine.decoding.token_mask import apply_token_masks
from engine.models.pick import Pick
from engine.request.grammar_matcher import GrammarMatcher
from engine.request.options import Acceptance


def no_bias(token_ids: Tensor) -> Tensor:
    return torch.zeros((len(token_ids), 1), device=token_ids.device)


def apply_grammars(logits: Tensor, picks: Seq[Pick]) -> None:
    """Refuse what the grammars refuse, along each pick's draft as far as it is legal."""
    rows: list[int] = []
    masks: list[bytes] = []
    start = 0
    for pick in picks:
        grammar = pick.sequence.grammar
        if grammar is not None and pick.num_rows > 0 and not pick.is_drafter:
            first = start + pick.num_rows - 1 - len(pick.draft)
            for row, mask in enumerate(grammar.masks(pick.draft), first):
                if mask:
                    rows.append(row)
                    masks.append(mask)
        start += pick.num_rows
    apply_token_masks(logits, rows, masks)


def draft_grammar(pick: Pick) -> GrammarMatcher | None:
    """The grammar that a draft is to keep to; its tokens must be the next of the output.

    Under the rejection rule none: p / q asks for the probability that a token was drawn with, and
    for a draft that ends at a place of its own.
    """
    sequence = pick.sequence
    if sequence.grammar is None or not pick.is_drafter:
        return None
    is_next = pick.first_position == sequence.num_output_tokens and pick.denoising_step == 0
    is_coupled = sequence.options.acceptance is Acceptance.COUPLED
    return sequence.grammar if is_next and is_coupled else None


def within_grammars(scores: Tensor, tokens: Tensor, picks: Seq[Pick]) -> Tensor:
    """Draw drafted tokens anew where a grammar refuses them, and advance it by what stands.

    scores: [N, V], of which `tokens` [N] are the maxima, a row a pick.
    """
    grammars = [draft_grammar(pick) for pick in picks]
    if not any(grammars):
        return tokens
    for row, (token_id, grammar) in enumerate(zip(tokens.tolist(), grammars, strict=True)):
        if grammar is None or grammar.is_complete or grammar.try_advance(token_id):
            continue
        if mask := grammar.mask():
            apply_token_masks(scores, [row], [mask])
            tokens[row] = scores[row].argmax()
            grammar.try_advance(int(tokens[row]))
    return tokens
