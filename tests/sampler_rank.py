"""What one of the two processes of test_samplers.py does. What it saw goes to FOLDER/<rank>.pt."""

import itertools
from pathlib import Path

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.dataset import BaseDataset, Compose
from mmengine.dist import all_gather, get_rank
from torch.utils.data import DataLoader

from pfb_mmseg.compare import RareClassSampler

SIZE, NUM_STEPS = 33, 40


class LoadNumbers(BaseTransform):
    def transform(self, results):
        return {**results, 'gt_seg_map': results['labels']}


class Labelled(BaseDataset):
    """Label maps of classes 0 to 3 and 255, made by chance."""

    def __init__(self, num_images, first=0):
        self.num_images, self.first = num_images, first
        self.pipeline = Compose([])
        self.pipeline.transforms = [LoadNumbers()]
        self._metainfo = {}

    def labels(self, index):
        kinds = np.random.default_rng(self.first + index).choice([0, 1, 2, 3, 255], 3)
        return np.repeat(kinds, 16).reshape(6, 8).astype(np.uint8)

    def get_data_info(self, index):
        return dict(labels=self.labels(index))

    def full_init(self):
        pass

    def __len__(self):
        return self.num_images


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
    return dict(steps=steps, state=sampler.state_dict())


def run(folder):
    from test_samplers import SAMPLERS, loss_of

    seen = {name: follow(make(range(SIZE)), loss_of) for name, make in SAMPLERS.items()}
    rare = RareClassSampler(Labelled(6), seed=3)
    seen['rare'] = torch.tensor(list(itertools.islice(rare, 20)))
    torch.save(seen, Path(folder) / f'{get_rank()}.pt')
