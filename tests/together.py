"""A tiny map, lesson and trainer, and one of two processes that train together: light, as each process imports it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import distributed

from models.diffusion.prior import Denoiser
from models.diffusion.training import Lesson
from models.train import Trainer, train

TINY = (4, 8)
ABOUT = {"method": "diffusion", "channels": list(TINY)}


def tiny_map() -> tuple[torch.Tensor, torch.Tensor]:
    """Chi in units and inside of a ball in blocks."""
    coarse = torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(3))
    chi = coarse.repeat_interleave(8, 0).repeat_interleave(8, 1).repeat_interleave(8, 2)
    x, y, z = (torch.linspace(-1, 1, n) for n in chi.shape)
    inside = x[:, None, None] ** 2 + y[:, None] ** 2 + z**2 < 1
    return (chi * inside).half(), inside


def tiny_lesson(seed: str) -> Lesson:
    return Lesson(lambda step: [tiny_map()], 2, seed)


def tiny_trainer() -> Trainer:
    torch.manual_seed(0)
    return Trainer(Denoiser(TINY), 0.01)


def one_of_two(rank: int, folder: Path) -> None:
    """Leaves its weights in `folder`."""
    distributed.init_process_group("gloo", f"file://{folder / 'place'}", rank=rank, world_size=2)
    trainer = tiny_trainer()
    train(trainer, tiny_lesson(str(rank)), 0.3, folder / "checkpoint.pt", ABOUT, print, every=1)
    torch.save(list(trainer.network.parameters()), folder / f"{rank}.pt")
    distributed.destroy_process_group()
