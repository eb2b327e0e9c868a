"""Random numbers of their own for one purpose: a function of what they are for, and nothing else.

A generator is made from its key (seed, purpose, epoch, ...), so that a resumed run draws the same
numbers, no other random stream is moved, and the noise of some users does not depend on which
other users are drawn with them: by chunks of any size, or in several processes.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

BLOCK = 256
"""Users whose noise comes from one generator."""


def keyed_generator(*key: int, device: Any = "cpu") -> torch.Generator:
    """A generator seeded by a key.

    Args:
        *key: Whole numbers, such as seed, number of the purpose, epoch.
        device: Device of the generator.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") % 2**63)


def user_noise(users: Tensor, width: int, *key: int) -> Tensor:
    """Independent draws of the exponential distribution of mean 1 for each user.

    ``-log`` of them is Gumbel noise, ``exp(-x)`` is uniform. All of a block is drawn for any user
    in it: ask for neighbouring users together.

    Args:
        users: User ids, ``[C]``, int64, in any order.
        width: Draws a user.
        *key: Whole numbers, such as seed, number of the purpose, epoch.

    Returns:
        Draws, ``[C, width]``, float32, on the device of ``users``; a row depends on its user,
        ``width`` and the key only.
    """
    blocks = users // BLOCK
    noise = torch.empty(len(users), width, device=users.device)
    for block in blocks.unique().tolist():
        generator = keyed_generator(*key, block, device=users.device)
        drawn = torch.empty(BLOCK, width, device=users.device).exponential_(generator=generator)
        inside = (blocks == block).nonzero().squeeze(1)
        noise[inside] = drawn[users[inside] % BLOCK]
    return noise
