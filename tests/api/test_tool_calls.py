"""Text with tool calls in it, read whole and in any pieces."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.tool_calls import CallPiece, Content, GatheredCall, Piece, ToolCallReader, gathered

CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "a}\\"b", "n": [1, {}]}}\n</tool_call>'
ARGUMENTS = '{"at": "a}\\"b", "n": [1, {}]}'
TURNED = '<tool_call>{"arguments": {"x": 1}, "name": "turn"}</tool_call>'
TEXTS = st.lists(
    st.sampled_from(
        [CALL, TURNED, "Let me see.", "\n", " ", "<tool", "<tool_call>", "</tool_call>", "{", "}"]
    ),
    max_size=6,
).map("".join)


def _read(pieces: list[str]) -> tuple[str, list[GatheredCall]]:
    reader = ToolCallReader()
    found: list[Piece] = []
    for number, piece in enumerate(pieces, 1):
        found += reader.read(piece, is_last=number == len(pieces))
    content = "".join(piece.text for piece in found if isinstance(piece, Content))
    calls: list[GatheredCall] = []
    for piece in found:
        if isinstance(piece, CallPiece):
            if piece.name is not None:
                assert piece.index == len(calls)
                calls.append(GatheredCall(piece.name))
            calls[piece.index].arguments.append(piece.arguments)
    return content, calls


def _plain(text: str) -> tuple[str, list[tuple[str, str]]]:
    content, calls = gathered(text)
    return content, [(call.name, "".join(call.arguments)) for call in calls]


@given(TEXTS, st.lists(st.integers(0, 400), max_size=12))
def test_the_pieces_in_which_a_text_comes_make_no_difference(text: str, cuts: list[int]) -> None:
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[start:end] for start, end in itertools.pairwise(places)]
    content, calls = _read(pieces)
    whole_content, whole_calls = gathered(text)
    assert content == whole_content
    assert [(c.name, "".join(c.arguments)) for c in calls] == [
        (c.name, "".join(c.arguments)) for c in whole_calls
    ]


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("Just words.\n", "Just words.\n", []),
        (CALL, "", [("look", ARGUMENTS)]),
        ("I look.\n" + CALL + "\n", "I look.", [("look", ARGUMENTS)]),
        (CALL + "\n" + TURNED, "", [("look", ARGUMENTS), ("turn", '{"x":1}')]),
        (CALL + " and so on", " and so on", [("look", ARGUMENTS)]),
        ('<tool_call>{"name": "f"}</tool_call>', "", [("f", "{}")]),
        (
            '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>',
            "",
            [("f", '{"a": 1}')],
        ),
        ("<tool_call>nonsense</tool_call>!", "<tool_call>nonsense</tool_call>!", []),
        ("<tool_call>[1]</tool_call>", "<tool_call>[1]</tool_call>", []),
        ("a < b <tool_cal", "a < b <tool_cal", []),
        # The limit of tokens came first: what there is of the arguments is handed on.
        (CALL[:45], "", [("look", CALL[:45].partition('arguments": ')[2])]),
        (CALL[:20], CALL[:20], []),
    ],
)
def test_calls_are_told_from_content(text: str, content: str, calls: list[tuple[str, str]]) -> None:
    assert _plain(text) == (content, calls)


def test_arguments_are_handed_on_as_they_come() -> None:
    reader = ToolCallReader()
    assert reader.read('<tool_call>\n{"name": "f", "argu') == []
    assert reader.read('ments": {"a"') == [CallPiece(0, "", "f"), CallPiece(0, '{"a"')]
    assert reader.read(": 1}") == [CallPiece(0, ": 1}")]
    assert reader.read("}\n</tool_call>", is_last=True) == []
