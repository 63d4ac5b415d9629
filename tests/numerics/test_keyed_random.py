"""Keyed draws are uniform and uncorrelated, and depend only on key, step and position."""

from __future__ import annotations

import torch

from qbench.numerics.keyed_random import generator, key_of, uniform


def keys(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int64).view(-1, 1, 1)


def step(n: int) -> torch.Tensor:
    return torch.tensor(n, dtype=torch.int64)


def test_draws_are_uniform() -> None:
    u = uniform(keys(key_of(0, "w")), step(3), (1, 1000, 1000)).double()
    assert u.min() >= 0 and u.max() < 1
    assert abs(u.mean() - 0.5) < 5 * (1 / 12 / 1e6) ** 0.5
    counts = torch.histc(u.float(), 100, 0, 1).double()
    chi2 = ((counts - 1e4).square() / 1e4).sum()
    assert 50 < chi2 < 165  # 99 degrees of freedom


def test_neighbouring_keys_steps_and_positions_are_uncorrelated() -> None:
    n = 100_000
    base = uniform(keys(7), step(0), (1, 1, n)).flatten().double() - 0.5
    for other in (
        uniform(keys(8), step(0), (1, 1, n)),
        uniform(keys(7), step(1), (1, 1, n)),
        uniform(keys(7), step(0), (1, 1, n)).roll(1),
    ):
        correlation = (base * (other.flatten().double() - 0.5)).mean() * 12
        assert abs(correlation) < 5 / n**0.5


def test_a_site_draws_the_same_when_it_is_stacked() -> None:
    stacked = uniform(keys(1, 2, 3), step(5), (3, 4, 6))
    for index, key in enumerate((1, 2, 3)):
        assert torch.equal(stacked[index], uniform(keys(key)[0], step(5), (4, 6)))


def test_draws_and_generators_do_not_change_the_global_generator() -> None:
    before = torch.get_rng_state()
    uniform(keys(1), step(0), (1, 8, 8))
    torch.randn(4, generator=generator("task", 0))
    assert torch.equal(before, torch.get_rng_state())


def test_keys_are_the_same_in_every_process() -> None:
    assert key_of("grammar", 0) == 4829320852094478814
    assert key_of("a", "bc") != key_of("ab", "c")


def test_a_part_of_the_rows_draws_what_it_draws_in_the_whole() -> None:
    whole = uniform(keys(5), step(2), (1, 12, 7))
    for first, count in ((0, 5), (5, 4), (9, 3)):
        assert torch.equal(
            uniform(keys(5), step(2), (1, count, 7), torch.tensor(first)),
            whole[:, first : first + count],
        )
