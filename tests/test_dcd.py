"""DCD with the loss of RRD beside it, as in its paper."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kd_helpers import World, make_world

from recbole_kd.errors import KDError
from recbole_kd.methods.base import Distiller
from recbole_kd.methods.dcd import DCD
from recbole_kd.methods.rrd import RRD

RANKING = {"rrd_K": 10, "rrd_L": 10, "rrd_M": 25}
CORRECTION = {"dcd_K": 8, "dcd_M": 20, "dcd_T": 3.0}


def losses_of(world: World, method: type[Distiller], epoch: int, **options: Any) -> torch.Tensor:
    """The distillation loss of each user."""
    distiller = world.distiller(method, kd_rows="unique", **options)
    distiller.begin_epoch(epoch, 1)
    users = distiller.users
    with distiller.scorer.step():
        losses = distiller.losses(distiller.scorer.encode(users), users)
    assert losses.shape == users.shape
    return losses.detach()


@pytest.mark.parametrize("how", ["ranking", "ce"])
def test_the_loss_is_that_of_the_correction_and_rrds(how: str) -> None:
    world = make_world()
    own = {**CORRECTION, "dcd_loss": how}
    for epoch in (0, 3):
        correction = losses_of(world, DCD, epoch, **own)
        ranking = losses_of(world, RRD, epoch, **RANKING)
        both = losses_of(world, DCD, epoch, **own, **RANKING, dcd_ranking_weight=2.5)
        assert torch.allclose(both, correction + 2.5 * ranking)
        assert not torch.allclose(both, correction)


def test_without_it_nothing_of_rrd_is_kept_or_checked() -> None:
    world = make_world()
    distiller = world.distiller(DCD, **CORRECTION, rrd_M=10**6, rrd_K=-1)
    assert distiller.tables()["items"].numel() == 0
    assert DCD.teacher_list(distiller.options) == (20, True)
    for name in ("rrd_M", "rrd_K"):
        with pytest.raises(KDError, match=f"--{name}="):
            world.check(DCD, **{**CORRECTION, **RANKING, name: -1, "dcd_ranking_weight": 1.0})
    assert DCD.teacher_list({**CORRECTION, **RANKING, "dcd_ranking_weight": 1.0}) == (25, True)
