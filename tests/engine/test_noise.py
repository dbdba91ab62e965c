"""Philox against published vectors and plain Python; the noise made of it; the cache of it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.decoding import noise as noise_module
from engine.decoding.entropy_bound import MAX_STEPS
from engine.decoding.noise import (
    KEY_STEPS,
    LOW_32,
    MAX_CHOICE,
    MULTIPLIERS,
    NUM_ROUNDS,
    NoiseStream,
    gumbel,
    integers,
    philox,
    uniform,
)
from engine.decoding.noise_cache import NUM_AT_ONCE, NoiseCache
from engine.models.cpu_kernels import kernel_gumbel

# Random123, kat_vectors: philox4x32, 10 rounds: counter, key, expected.
KNOWN_ANSWERS = [
    (
        (0x00000000, 0x00000000, 0x00000000, 0x00000000),
        (0x00000000, 0x00000000),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def plain_philox(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(NUM_ROUNDS):
        first, second = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1 = (second >> 32) ^ c1 ^ k0, second & LOW_32
        c2, c3 = (first >> 32) ^ c3 ^ k1, first & LOW_32
        k0, k1 = (k0 + KEY_STEPS[0]) & LOW_32, (k1 + KEY_STEPS[1]) & LOW_32
    return c0, c1, c2, c3


def as_int64(low: int, high: int) -> int:
    value = low | high << 32
    return value - (1 << 64) if value >= 1 << 63 else value


def rows(*values: int) -> Tensor:
    return torch.tensor(values)


def random_rows(num_rows: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    seeds = torch.randint(-(2**63), 2**63 - 1, (num_rows,), generator=generator)
    small = torch.randint(0, 9, (3, num_rows), generator=generator)
    return (seeds, *small.unbind(0))


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(
    counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    words = philox(tuple(rows(word) for word in counter), rows(as_int64(*key)))  # type: ignore[arg-type]
    assert tuple(int(word) for word in words) == expected
    assert plain_philox(counter, key) == expected


def test_every_entry_of_the_noise_is_philox_of_its_own_place() -> None:
    seed, prompt, choice, position, step = 0x9E3779B97F4A7C15 - (1 << 64), 3, 2, 70_000, 5
    noise = gumbel(rows(seed), rows(prompt), rows(choice), rows(position), 11, rows(step))
    key = (seed & LOW_32, seed >> 32 & LOW_32)
    for token_id in range(11):
        counter = (token_id // 4, position, prompt, choice + (step << 16))
        word = plain_philox(counter, key)[token_id % 4]
        expected = -math.log(-math.log1p(-(word + 0.5) * 2.0**-32))
        assert noise[0, token_id].item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_noise_does_not_depend_on_the_other_rows_or_the_width() -> None:
    numbers = random_rows(40)
    together = gumbel(*numbers, vocab_size=5003)  # type: ignore[misc]
    for row in (0, 17, 39):
        alone = gumbel(*(column[row : row + 1] for column in numbers), vocab_size=5003)  # type: ignore[misc]
        narrow = gumbel(*(column[row : row + 1] for column in numbers), vocab_size=102)  # type: ignore[misc]
        assert torch.equal(together[row], alone[0])
        assert torch.equal(together[row, :102], narrow[0])


def test_every_number_of_a_row_changes_its_noise() -> None:
    base = [rows(7), rows(0), rows(0), rows(0), rows(0)]
    seen = [gumbel(*base[:4], 64, base[4])]
    for place in range(5):
        changed = [value + 1 if place == at else value for at, value in enumerate(base)]
        seen.append(gumbel(*changed[:4], 64, changed[4]))
    seen.append(gumbel(rows(7 + (1 << 32)), *base[1:4], 64, base[4]))
    assert len({tuple(noise[0].tolist()) for noise in seen}) == len(seen)


def test_noise_has_the_moments_of_a_gumbel_and_is_always_finite() -> None:
    numbers = random_rows(50)
    noise = gumbel(*numbers, vocab_size=20_000).double()  # type: ignore[misc]
    assert noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.006)  # 4.7 standard errors
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.02)
    # The tail decides who wins: P(G > 8) = 1 - exp(-exp(-8)), 335 of a million expected.
    assert (noise > 8.0).sum().item() == pytest.approx(335, abs=92)  # 5 standard deviations


def test_the_extreme_integers_give_finite_noise() -> None:
    extreme = torch.tensor([0.0, 1.0, 2.0**31, float(2**32 - 1)])
    noise = noise_module._gumbel_from_integers_(extreme)
    assert noise.isfinite().all()
    assert noise.tolist() == sorted(noise.tolist(), reverse=True)
    assert noise[0].item() == pytest.approx(33 * math.log(2), rel=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_draws_the_same_integers() -> None:
    numbers = random_rows(8)
    counter = (torch.arange(1000)[None], *(column[:, None] for column in numbers[1:]))
    on_cpu = philox(counter, numbers[0][:, None])
    on_gpu = philox(tuple(word.cuda() for word in counter), numbers[0][:, None].cuda())  # type: ignore[arg-type]
    assert all(torch.equal(a, b.cpu()) for a, b in zip(on_cpu, on_gpu, strict=True))


class CountingGumbel:
    """`gumbel`, and how many rows were made each time that some were."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def __call__(self, seeds: Tensor, *rest: Any) -> Tensor:
        self.counts.append(len(seeds))
        return gumbel(seeds, *rest)


def test_a_cached_row_is_the_row() -> None:
    made = CountingGumbel()
    cache = NoiseCache(make=made)
    keys = [((5, 0, 0), position) for position in (3, 4, 5, 4)]
    plain = gumbel(rows(5, 5, 5, 5), rows(0, 0, 0, 0), rows(0, 0, 0, 0), rows(3, 4, 5, 4), 100)
    assert torch.equal(cache.rows(keys, 100), plain)
    assert torch.equal(cache.rows(keys[1:], 100), plain[1:])
    assert made.counts == [7]  # each position once, however often it is asked for, and four more
    assert torch.equal(cache.rows(keys, 52), plain[:, :52])  # another vocabulary, other rows


def test_few_missing_rows_are_made_with_those_that_follow() -> None:
    made = CountingGumbel()
    cache = NoiseCache(make=made)
    for position in range(2 * NUM_AT_ONCE):
        row = gumbel(rows(5), rows(0), rows(0), rows(position), 100)
        assert torch.equal(cache.rows([((5, 0, 0), position)], 100), row)
    assert made.counts == [NUM_AT_ONCE, NUM_AT_ONCE]


def test_the_kernel_makes_the_same_noise_bit_for_bit() -> None:
    pytest.importorskip("numba", reason="needs numba")
    by_kernel = kernel_gumbel()
    assert by_kernel is not gumbel
    numbers = random_rows(70)
    for vocab_size in (4096, 5003, 2):
        assert torch.equal(by_kernel(*numbers, vocab_size), gumbel(*numbers, vocab_size))  # type: ignore[call-arg]


def test_a_full_cache_drops_the_row_used_longest_ago_and_never_one_in_use() -> None:
    cache = NoiseCache(max_bytes=3 * 4 * 10)  # three rows of ten

    def expected(positions: list[int]) -> Tensor:
        zeros = torch.zeros(len(positions), dtype=torch.int64)
        return gumbel(zeros, zeros, zeros, torch.tensor(positions), 10)

    for positions in ([0, 1, 2], [0, 3], [3, 0, 4], [1, 2, 0], [0, 1, 2, 3, 4], [4, 4, 1]):
        keys = [((0, 0, 0), position) for position in positions]
        assert torch.equal(cache.rows(keys, 10), expected(positions))
        assert len(cache._slots) <= 3


def uniforms_of(stream: int, count: int) -> Tensor:
    zeros = torch.zeros(count, dtype=torch.int64)
    return uniform(torch.arange(count), zeros, zeros, zeros + 3, zeros + stream)


def test_uniforms_are_uniform_and_never_at_the_ends() -> None:
    drawn = uniforms_of(NoiseStream.ACCEPT, 20_000)
    assert 0.0 < drawn.min() < drawn.max() < 1.0
    counts = torch.histc(drawn, 20, 0.0, 1.0)
    assert ((counts - 1000) ** 2 / 1000).sum() < 60.4  # chi-square, 19 degrees, one in 300,000


def test_the_extreme_integers_give_uniforms_inside_the_interval(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = torch.tensor([[0], [LOW_32]])
    monkeypatch.setattr(noise_module, "philox", lambda counter, key: [words])
    low, high = uniforms_of(NoiseStream.ACCEPT, 2).tolist()
    assert 0.0 < low < 2.0**-32 < high < 1.0


def test_the_first_lane_of_the_noise_is_made_of_the_same_number() -> None:
    zeros = torch.zeros(50, dtype=torch.int64)
    noise = gumbel(torch.arange(50), zeros, zeros, zeros + 3, 4, zeros + 9)[:, 0]
    expected = -(-torch.log1p(-uniforms_of(9, 50).double())).log()
    assert torch.allclose(noise.double(), expected, atol=1e-5)


def test_what_is_drawn_at_a_position_is_drawn_independently() -> None:
    # Apart from the token's own they lie where no canvas counts its denoising steps.
    first, *others = sorted(set(NoiseStream) - {NoiseStream.RENOISING})
    assert first == 0 and all(MAX_CHOICE - 16 < stream < MAX_CHOICE for stream in others)
    # Random tokens have a number for each pass, beside those of the passes themselves.
    assert MAX_STEPS < NoiseStream.RENOISING < MAX_CHOICE - 16 - MAX_STEPS
    drawn = torch.stack([uniforms_of(stream, 20_000) for stream in NoiseStream])
    correlations = torch.corrcoef(drawn) - torch.eye(len(NoiseStream))
    assert correlations.abs().max() < 5.0 / math.sqrt(20_000)


@pytest.mark.parametrize("end", [1, 7, 1 << 18])
def test_integers_are_all_as_likely_and_made_of_the_same_number(end: int) -> None:
    zeros = torch.zeros(20_000, dtype=torch.int64)
    numbers = (zeros + 5, zeros, zeros, torch.arange(20_000), zeros + NoiseStream.RENOISING)
    drawn = integers(*numbers, end)
    shares = (drawn + 0.5) / end
    assert int(drawn.min()) >= 0 and int(drawn.max()) < end
    assert (shares - uniform(*numbers)).abs().max() <= 0.5 / end + 1e-6
    if end == 7:
        counts = torch.bincount(drawn, minlength=7).double()
        expected = 20_000 / 7
        assert float(((counts - expected) ** 2 / expected).sum()) < 22.5  # 0.1 % of chi-square
