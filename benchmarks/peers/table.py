"""Table `peers`: everybody in turn, on the same prompts, and whether they write the same."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import FrameType

from benchmarks.http_client import RequestFailedError
from benchmarks.options import Options
from benchmarks.peers.line_up import AR, DEER, EXACT, Contestant, LineUp, line_up
from benchmarks.peers.llama_cpp import CONTEXT
from benchmarks.peers.peer import LOADS
from benchmarks.peers.place import WEIGHTS, PeerFailedError, Place
from benchmarks.peers.running import Answers, OurMode, PeerPrompt, Running, figures
from benchmarks.prompts import prompts, tokens_of_round
from benchmarks.results import Cell, Chart, Table
from benchmarks.rounds import Sample, interleave, middle, ratio
from engine.request.tokenizer import Tokenizer

COLUMNS = (
    "engine", "asked through", "at once", "tokens/s", f"x {AR}", f"x {DEER}", "tokens / CPU s",
    "others' cores", "first token ms p50", "ms / token p50", "complete", "same text",
)  # fmt: skip
_FIGURES = ("tokens_cpu_s", "other_cores", "first_ms_p50", "pace_ms_p50")
NUM_TOKENS, NUM_COMPARED = 128, 16
MIN_PROMPTS = 8  # so that the fastest are not over in a quarter of a second
FAILURES = (
    PeerFailedError, RequestFailedError, OSError, EOFError, asyncio.LimitOverrunError, ValueError,
)  # fmt: skip
NOTES = (
    "Medians over interleaved rounds; `x ours` is the median of each round's own ratio, above 1 is "
    f"faster than ours. {NUM_TOKENS} new tokens an answer, prompts read within the time, prefix "
    "caches off, the same number of threads for all, each peer with its own way of waiting.",
    "Over HTTP all are asked by the same streaming client for /v1/completions of the same text. "
    "`in process` is a library without HTTP, in a process of its own and with tokens instead of "
    "text, so without the client's, the server's and the tokenizer's cost.",
    "A peer whose turn it is not stands still (SIGSTOP). `tokens / CPU s` is over all processes of "
    "an engine, not the client. `others' cores`: what somebody else used meanwhile; with 0.2 and "
    "more a figure is nobody's, as threads that spin wait for the core that they lack.",
    f"`same text`: of {NUM_COMPARED} answers, those equal to the text of {EXACT}. llama.cpp makes "
    "the end of text impossible where others go on behind it; it is compared with ours doing so. "
    "transformers writes one static, padded batch in `generate` and knows DFlash at one at once.",
    "DFlash has no place for our drafter's Markov head, so that fewer drafts are accepted; DSpark "
    "is DFlash with that head. The number behind either is the fixed draft length.",
)


class PeersBench:
    """Everybody who takes part, and what they are asked."""

    def __init__(self, options: Options, players: LineUp, tokenizer: Tokenizer) -> None:
        self._options = options
        self._players = players
        self._tokenizer = tokenizer
        self._references: dict[bool, list[str]] = {}
        self._same: dict[str, str] = {}

    def measure(self, at_once: int) -> Mapping[str, list[Sample]]:
        """All rounds at one load; who fails on the way is left out from there on."""
        names = [name for name, _ in self._players.playing(at_once)]
        cases = {name: partial(self._sample, name, at_once) for name in names}
        samples = interleave(cases, self._options.num_rounds)
        return {name: samples[name] for name, _ in self._players.playing(at_once)}

    def row(self, name: str, at_once: int, samples: Mapping[str, list[Sample]]) -> list[Cell]:
        own = samples[name]
        complete, total = (int(sum(s[key] for s in own)) for key in ("num_complete", "num_answers"))
        return [
            name,
            self._players.contestants[name].how,
            at_once,
            middle(own, "tokens_s"),
            ratio(own, samples[AR], "tokens_s"),
            ratio(own, samples[DEER], "tokens_s"),
            *(middle(own, key) for key in _FIGURES),
            f"{complete}/{total}",
            self._same.get(name, "-"),
        ]

    def _sample(self, name: str, at_once: int, number: int) -> Sample:
        if name in self._players.failed:
            return {}
        contestant = self._players.contestants[name]
        try:
            if number < 0 and at_once == max(contestant.loads):
                self._compare(name, contestant)
                return {}
            asked = self.prompts(at_once, number)
            # Warming up takes a whole round: some peers compile for each shape that they meet.
            num_tokens = tokens_of_round(self._options, max(0, number))
            return figures(contestant.running, asked, num_tokens, at_once)[1]
        except FAILURES as error:
            if isinstance(contestant.running, OurMode):
                raise
            self._players.failed[name] = f"{type(error).__name__}: {error}"[:200]
            sys.stderr.write(f"  {name} failed: {error}\n")
            return {}

    def _compare(self, name: str, contestant: Contestant) -> None:
        """Which answers are ours; a warm-up at full load as well."""
        if "T = 1" in name:
            return
        reference = self._reference(contestant.bans_eos)
        texts = self._texts(contestant.running, max(contestant.loads))
        same = sum(text == ours for text, ours in zip(texts, reference, strict=True))
        self._same[name] = f"{same}/{len(reference)}"

    def _reference(self, bans_eos: bool) -> list[str]:
        if bans_eos not in self._references:
            players = self._players
            ours = players.banning if bans_eos else players.contestants[EXACT].running
            self._references[bans_eos] = self._texts(ours, max(LOADS))
        return self._references[bans_eos]

    def _texts(self, running: Running, at_once: int) -> list[str]:
        count = 4 if self._options.quick else NUM_COMPARED
        asked = self._cut(replace(self._options, seed=self._options.seed - 1), count)
        answers, _ = figures(running, asked, tokens_of_round(self._options, 0), at_once)
        return [text.rstrip("\N{REPLACEMENT CHARACTER}") for text in self._written(answers)]

    def _written(self, answers: Answers) -> Sequence[str]:
        return answers.texts or [self._tokenizer.decode(ids) for ids in answers.token_ids]

    def prompts(self, at_once: int, number: int) -> list[PeerPrompt]:
        """Of a round and load: the same for everybody, and for no other round or load."""
        seed = self._options.seed + 1000 * (number + 2) + 100_000 * at_once
        count = at_once if self._options.quick else max(MIN_PROMPTS, at_once)
        return self._cut(replace(self._options, seed=seed), count)

    def _cut(self, options: Options, count: int) -> list[PeerPrompt]:
        """Prompts as the text that the chat template makes of them, cut to the peers' context."""
        made = []
        for prompt in prompts(options, count):
            if prompt.messages:
                ids = self._tokenizer.apply_chat_template(list(prompt.messages))
            else:
                ids = self._tokenizer.encode(prompt.text)
            kept = ids[-(CONTEXT - NUM_TOKENS - 1) :]
            text = b"".join(map(self._tokenizer.token_bytes, kept)).decode(errors="ignore")
            made.append(PeerPrompt(text, self._tokenizer.encode(text)))
        return made


def measure(options: Options) -> Table:
    tokenizer = Tokenizer(WEIGHTS / "verifier")
    place = Place(options.peers.absolute()) if options.peers else None
    rows: list[list[Cell]] = []
    kept: dict[str, object] = {}
    bars: dict[str, dict[str, float]] = {}
    with _ended_by_exception(), line_up(place, tokenizer.eos_token_ids) as players:
        bench = PeersBench(options, players, tokenizer)
        for at_once in LOADS:
            samples = bench.measure(at_once)
            rows += [bench.row(name, at_once, samples) for name in samples]
            kept |= {f"{name}, {at_once} at once": own for name, own in samples.items()}
            bars[f"{at_once} at once"] = {n: middle(own, "tokens_s") for n, own in samples.items()}
    about = [
        *(["Versions: " + "; ".join(sorted(players.versions))] if players.versions else ()),
        *(f"not installed: {name} ({reason})" for name, reason in players.missing.items()),
        *(f"failed: {name} ({reason})" for name, reason in players.failed.items()),
    ]
    title = "Other engines on the same weights"
    return Table("peers", title, COLUMNS, rows, (*NOTES, *about), kept, Chart("tokens / s", bars))


@contextmanager
def _ended_by_exception() -> Iterator[None]:
    """Let SIGTERM end what was started, too: a process that stands still ends on no other way."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
