"""Keyed noise: its law, its independence of chunks, of other users and of every other stream."""

from __future__ import annotations

import math

import pytest
import torch

from recbole_kd.noise import BLOCK, keyed_generator, user_noise


def test_generators_of_different_keys_differ() -> None:
    firsts = {
        int(torch.randint(2**62, (1,), generator=keyed_generator(seed, stream, epoch)))
        for seed in (0, 1, 7, 2020)
        for stream in (1, 2)
        for epoch in range(40)
    }
    assert len(firsts) == 4 * 2 * 40
    once, again = (torch.rand(3, generator=keyed_generator(5, 2, 9)) for _ in range(2))
    assert torch.equal(once, again)


def test_noise_follows_its_law() -> None:
    noise = user_noise(torch.arange(4 * BLOCK), 100, 3, 2, 0).double()
    n = noise.numel()
    assert noise.min() > 0
    # Mean 1, variance 1, P(x > 2) = exp(-2): each within 4.5 standard errors.
    assert abs(noise.mean().item() - 1) < 4.5 / math.sqrt(n)
    assert abs(noise.var().item() - 1) < 4.5 * math.sqrt(8 / n)
    tail = math.exp(-2)
    assert abs((noise > 2).double().mean().item() - tail) < 4.5 * math.sqrt(tail / n)
    assert len(noise.unique(dim=0)) == 4 * BLOCK


def test_noise_of_a_user_depends_on_no_other_user() -> None:
    users = torch.arange(1, 3 * BLOCK, 2)
    before = torch.get_rng_state()
    whole = user_noise(users, 7, 5, 2, 1)
    assert torch.equal(torch.get_rng_state(), before)
    for size in (1, 100, BLOCK, 300):
        parts = torch.cat([user_noise(part, 7, 5, 2, 1) for part in users.split(size)])
        assert torch.equal(parts, whole)
    shuffled = torch.randperm(len(users), generator=torch.Generator().manual_seed(0))
    assert torch.equal(user_noise(users[shuffled], 7, 5, 2, 1), whole[shuffled])
    shard = users[users % 3 == 0]
    assert torch.equal(user_noise(shard, 7, 5, 2, 1), whole[users % 3 == 0])


@pytest.mark.parametrize("key", [(6, 2, 1), (5, 3, 1), (5, 2, 2)])
def test_noise_differs_by_seed_purpose_and_epoch(key: tuple[int, ...]) -> None:
    users = torch.arange(5)
    assert not torch.equal(user_noise(users, 7, *key), user_noise(users, 7, 5, 2, 1))
