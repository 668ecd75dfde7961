"""What one process of test_global.py does. What it saw goes to FOLDER/<rank>.pt."""

from pathlib import Path

import tiny
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import distributed as dist

from pfb_mmseg.core import BatchPruner, Candidates, Criterion
from pfb_mmseg.core.selection import keep_highest
from pfb_mmseg.models import HostCandidates

NUM, ITERATIONS = 8, 12


class Disturbed(Criterion):
    """Images that are nearly alike, and a rank that computes them a little otherwise."""

    score_name = 'height'

    def __init__(self):
        super().__init__()
        self.own_choices = []

    def observe(self, candidates):
        return torch.ones(candidates.num)

    def score(self, observation, generator):
        noise = 1e-6 * torch.randn(len(observation), generator=generator)
        rounding = 1e-6 * torch.randn(len(observation), generator=generator)
        return observation + noise + dist.get_rank() * rounding

    def importance(self, score, generator):
        self.own_choices.append(keep_highest(score, len(score) // 2).tolist())
        return score


def save(seen, folder):
    torch.save(seen, Path(folder) / f'{dist.get_rank()}.pt')


def disturbed(folder):
    """The numbers of the images that each rank goes on with, and what it would have chosen."""
    criterion = Disturbed()
    pruner = BatchPruner(0.5, criterion=criterion, selection_scope='global')
    numbers = torch.arange(NUM) + NUM * dist.get_rank()
    taken, own = [], []
    for _ in range(ITERATIONS):
        with pruner.select(Candidates(NUM, torch.device('cpu'))) as decision:
            taken.append(decision.take(numbers).tolist())
            own.append(numbers[decision.selection.kept].tolist())
    save(dict(taken=taken, own=own, choices=criterion.own_choices), folder)


def two_fields(folder):
    """Number of each image and of its two label maps, after they have changed hands."""
    model = tiny.build(dict(criterion='random', selection_scope='global'))
    numbers = (torch.arange(NUM) + NUM * dist.get_rank()).tolist()
    order, seen = None, []
    for _ in range(ITERATIONS):
        images = torch.stack([torch.full((3, 64, 64), float(number)) for number in numbers])
        samples = []
        for number in numbers:
            sample = SegDataSample()
            sample.gt_sem_seg = PixelData(data=torch.full((1, 64, 64), number))
            sample.gt_edge_map = PixelData(data=torch.full((1, 64, 64), 100 + number))
            samples.append(sample)
        order = samples[0].keys()
        candidates = HostCandidates(model, model.pfb, images, samples)
        with model.pfb.decide(candidates) as decision:
            images, samples = model.pfb.narrow(decision, images, samples)
        seen += [
            (
                int(image.mean()),
                int(sample.gt_sem_seg.data.float().mean()),
                int(sample.gt_edge_map.data.float().mean()),
            )
            for image, sample in zip(images, samples, strict=True)
        ]
    save(dict(order=order, seen=seen), folder)


def hard(folder):
    """Losses of single images, whichever rank has them, and the images that a rank goes on with."""
    rank = dist.get_rank()
    options = dict(criterion='hard', selection_scope='global', score_statistics='running')
    model = tiny.build(options)
    torch.nn.init.normal_(model.auxiliary_head.conv_seg.weight, std=0.5)
    half = slice(4 * rank, 4 * rank + 4)
    images, samples = tiny.images()[half], tiny.samples()[half]
    candidates = HostCandidates(model, model.pfb, images, samples)
    with model.pfb.decide(candidates) as decision:
        taken, labels = model.pfb.narrow(decision, images, samples)
    selection = decision.selection
    seen = dict(score=selection.score, kept=selection.kept, images=taken)
    save(seen | dict(labels=torch.stack([one.gt_sem_seg.data for one in labels])), folder)
