"""What one of the two processes of test_samplers.py does. What it saw goes to FOLDER/<rank>.pt."""

import itertools
from pathlib import Path

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.dataset import BaseDataset, Compose
from mmengine.dist import all_gather, get_rank
from torch.utils.data import DataLoader

from pfb_mmseg.compare import (
    FixedPartSampler,
    InfoBatchSampler,
    OrderDPSampler,
    RareClassSampler,
    SeTaSampler,
)

SIZE, NUM_EPOCHS, NUM_STEPS = 33, 6, 40


class LoadNumbers(BaseTransform):
    def transform(self, results):
        return {**results, 'gt_seg_map': results['labels']}


class Labelled(BaseDataset):
    """Label maps of classes 0 to 3 and 255, made by chance."""

    def __init__(self, num_images, first=0):
        self.num_images, self.first = num_images, first
        self.pipeline = Compose([])
        self.pipeline.transforms = [LoadNumbers()]
        self.num_loaded = 0
        self._metainfo = {}

    def labels(self, index):
        kinds = np.random.default_rng(self.first + index).choice([0, 1, 2, 3, 255], 3)
        return np.repeat(kinds, 16).reshape(6, 8).astype(np.uint8)

    def get_data_info(self, index):
        self.num_loaded += 1
        return dict(labels=self.labels(index))

    def full_init(self):
        pass

    def __len__(self):
        return self.num_images


def follow(sampler):
    """Batches of four through workers, with losses that only the process that trained on an image
    knows, and the lengths of the epochs in batches."""
    from test_samplers import loss_of

    loader = DataLoader(range(SIZE), 4, sampler=sampler, num_workers=2, persistent_workers=True)
    steps, lengths = [], []

    def step(batch):
        taken = sampler.take(len(batch)).indices
        losses = torch.stack(all_gather(loss_of(batch, len(steps))), dim=1)
        sampler.update(taken.flatten(), losses.flatten())
        steps.append(dict(loaded=batch, taken=taken))

    if not sampler.by_epoch:
        for batch in itertools.islice(loader, NUM_STEPS):
            step(batch)
    for epoch in range(NUM_EPOCHS if sampler.by_epoch else 0):
        sampler.set_epoch(epoch)
        before = len(steps)
        for batch in loader:
            step(batch)
        lengths.append(len(steps) - before)
        assert lengths[-1] == len(loader)
    state = sampler.state_dict()
    return dict(steps=steps, lengths=lengths, scores=sampler.scores, state=state)


def run(folder):
    data = range(SIZE)
    seen = {}
    for by_epoch in (False, True):
        options = dict(seed=7, by_epoch=by_epoch)
        seen['infobatch', by_epoch] = follow(InfoBatchSampler(data, 0.5, **options))
        seen['random_once', by_epoch] = follow(FixedPartSampler(data, 0.5, **options))
        seen['orderdp', by_epoch] = follow(OrderDPSampler(data, pool=0.8, share=0.82, **options))
        seen['seta', by_epoch] = follow(SeTaSampler(data, 0.1, **options))
    labelled = Labelled(6)
    rare = RareClassSampler(labelled, seed=3)
    seen['counted'] = labelled.num_loaded > 0
    seen['probabilities'] = rare.probabilities
    seen['rare'] = torch.tensor(list(itertools.islice(rare, 20)))
    torch.save(seen, Path(folder) / f'{get_rank()}.pt')
