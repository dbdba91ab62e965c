"""Table `entropy`: what entropy and acceptance decide, against each fixed setting they replace."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import replace

from benchmarks.configured import configured
from benchmarks.grid import measure_grid
from benchmarks.modes import drive, sequences
from benchmarks.options import Options
from benchmarks.prompts import prompts_of_round, tokens_of_round
from benchmarks.results import Cell, Table, shown
from benchmarks.rounds import Sample, middle, ratio
from engine.build import build_engine
from engine.dfastllm_engine import DFastLLMEngine
from engine.entropy_controller import EntropyConfig
from engine.request.options import NO_OPTIONS, GenerationOptions

COLUMNS = (
    "setting", "T", "at once", "tokens/s", "adaptive over it", "verify fwd / token",
    "draft fwd / token", "verified drafts / token", "cut", "log-loss",
)  # fmt: skip

FIXED_LENGTHS = (2, 4, 7)
FIXED_STEPS = (1, 2, 3)
STEPPED_LENGTH = 7
REPLACED = {
    "adaptive": f"fixed {FIXED_LENGTHS[-1]}",
    "spec_diff, adaptive": f"spec_diff, {STEPPED_LENGTH} in {FIXED_STEPS[-1]}",
}
"""What would be set for hard and easy texts alike where nothing told them apart: the most."""


class Setting:
    """One way of deciding how much to draft, on an engine of its own or a shared one."""

    def __init__(
        self,
        engine: DFastLLMEngine,
        mode: str = "deer",
        options: GenerationOptions = NO_OPTIONS,
        against: str = "adaptive",
    ) -> None:
        self.engine = engine
        self.against = against  # the name of the setting that it is compared with
        self._mode = mode
        self._options = options

    def measure(self, options: Options, temperature: float, at_once: int, number: int) -> Sample:
        """Run a closed loop: whenever a sequence ends, the next prompt takes its place."""
        asked = prompts_of_round(options, at_once, number)
        num_tokens = tokens_of_round(options, number)
        waiting = deque(
            sequences(self.engine, asked, num_tokens, temperature, self._mode, self._options)
        )
        self.engine.reset_stats()
        run = drive(self.engine, waiting, at_once)
        metrics = self.engine.metrics()
        num_drafted = metrics.get(f"{self._mode}_num_draft_tokens", 0.0)
        num_forwards = metrics["num_draft_forwards"] + metrics["num_denoise_forwards"]
        num_cut = metrics.get("deer_entropy_num_cut_tokens", 0.0)
        num_judged = metrics.get("deer_entropy_num_positions", 0.0)
        loss = metrics.get("deer_entropy_sum_log_loss", 0.0)
        return {
            "tokens_s": run.num_tokens / run.seconds,
            "verify_per_token": metrics["num_verify_forwards"] / run.num_tokens,
            "draft_per_token": num_forwards / run.num_tokens,
            "drafted_per_token": num_drafted / run.num_tokens,
            "cut": num_cut / max(1.0, num_cut + num_drafted),
            "log_loss": loss / num_judged if num_judged else float("nan"),
        }


def run(options: Options) -> Table:
    settings = _settings()

    def measure(name: str, temperature: float, at_once: int, number: int) -> Sample:
        return settings[name].measure(options, temperature, at_once, number)

    def row(
        name: str, temperature: float, at_once: int, samples: Mapping[str, list[Sample]]
    ) -> list[Cell]:
        base = samples[settings[name].against]
        return _row(name, temperature, at_once, samples[name], base)

    loads = (1,) if options.quick else (1, 8)
    grid = measure_grid(settings, loads, options.num_rounds, measure, row)
    title = "Entropy-adaptive drafts"
    notes = (*map(_what_it_brings, REPLACED, [grid.rows] * len(REPLACED)), *_NOTES)
    return Table("entropy", title, COLUMNS, grid.rows, notes, grid.samples, grid.chart)


def _what_it_brings(adaptive: str, rows: list[list[Cell]]) -> str:
    """In words, by load: the aim of this table."""
    replaced = REPLACED[adaptive]
    found = ", ".join(
        f"{shown(over)} (T = {temperature}, {at_once} at once)"
        for name, temperature, at_once, _, over, *_ in rows
        if name == replaced
    )
    return f"`{adaptive}` over `{replaced}`, the fixed setting that it replaces: {found}."


_NOTES = (
    "Medians over interleaved rounds; `adaptive over it` is the median of the rounds' own ratios "
    "of the adaptive setting to this one: above 1 adaptive was faster. Prompts of all domains "
    "mixed, prefix cache off.",
    "`adaptive`: drafts are cut by certainty; `planned`: lengths by acceptance so far alone; "
    "`fixed n`: always n draft tokens; `ar`: no drafts, what the planner may fall back to.",
    "`spec_diff, adaptive`: length, denoising steps and fallback by entropy alone; `planned`: by "
    "measured costs and acceptance; `7 in n`: 7 tokens in n steps, always.",
    "`cut`: share of the drafted tokens that the verifier was not shown. `log-loss`: of the "
    "chances foretold for those that it was, nats a token.",
)


def _settings() -> dict[str, Setting]:
    config = configured()
    plain = build_engine(replace(config, entropy=None))
    cutting = build_engine(replace(config, entropy=config.entropy or EntropyConfig()))
    fixed = {
        f"fixed {n}": Setting(plain, options=GenerationOptions(draft_length=n))
        for n in FIXED_LENGTHS
    }
    return {
        "adaptive": Setting(cutting),
        "planned": Setting(plain),
        **fixed,
        "ar": Setting(plain, mode="ar"),
        **_stepped(plain, cutting),
    }


def _stepped(plain: DFastLLMEngine, paced: DFastLLMEngine) -> dict[str, Setting]:
    """The same for drafts of several denoising steps."""
    name = "spec_diff, adaptive"
    fixed = {
        f"spec_diff, {STEPPED_LENGTH} in {steps}": GenerationOptions(
            draft_length=STEPPED_LENGTH, denoising_steps=steps
        )
        for steps in FIXED_STEPS
    }
    return {
        name: Setting(paced, "spec_diff", against=name),
        "spec_diff, planned": Setting(plain, "spec_diff", against=name),
        **{own: Setting(plain, "spec_diff", knobs, name) for own, knobs in fixed.items()},
    }


def _row(
    name: str, temperature: float, at_once: int, own: list[Sample], base: list[Sample]
) -> list[Cell]:
    loss = middle(own, "log_loss")
    return [
        name,
        f"{temperature:g}",
        at_once,
        middle(own, "tokens_s"),
        ratio(base, own, "tokens_s"),
        middle(own, "verify_per_token"),
        middle(own, "draft_per_token"),
        middle(own, "drafted_per_token"),
        f"{middle(own, 'cut'):.1%}" if name == "adaptive" else "-",
        "-" if loss != loss else loss,
    ]
