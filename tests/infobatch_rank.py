"""What one of the two processes of test_infobatch.py does. What it saw goes to FOLDER/<rank>.pt."""

import itertools
from pathlib import Path

import torch
from mmengine.dist import all_gather, get_rank
from torch.utils.data import DataLoader

from pfb_mmseg.compare import InfoBatchSampler

SIZE, NUM_STEPS = 33, 40


def follow(sampler, loss_of):
    """Batches of four through workers, with losses that only the process that trained on an image
    knows."""
    loader = DataLoader(range(SIZE), 4, sampler=sampler, num_workers=2, persistent_workers=True)
    steps = []
    for number, batch in enumerate(itertools.islice(loader, NUM_STEPS)):
        taken, _ = sampler.take(len(batch))
        losses = torch.stack(all_gather(loss_of(batch, number)), dim=1)
        sampler.update(taken.flatten(), losses.flatten())
        steps.append(dict(loaded=batch, taken=taken))
    return dict(steps=steps, losses=sampler.losses, candidates=sampler.candidates)


def run(folder):
    from test_infobatch import loss_of

    seen = follow(InfoBatchSampler(range(SIZE), 0.6, seed=5), loss_of)
    torch.save(seen, Path(folder) / f'{get_rank()}.pt')
