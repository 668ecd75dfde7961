"""What one process of a group does that hands in a record; no model is trained."""

from pathlib import Path

import numpy as np
import tiny
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from pfb_mmseg.core import Selection
from pfb_mmseg.data.places import PLACE
from pfb_mmseg.hooks import PFBRecordHook

IMAGES, CLASSES, ITERATIONS = 16, 150, 100


class WatchCollectives(TorchDispatchMode):
    """Bytes that this process hands in and gets, and how many collectives there were."""

    def __init__(self):
        super().__init__()
        self.calls, self.sent, self.received = 0, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == 'c10d':
            self.calls += 1
            inputs = {'gather_': args[1], 'allgather_': args[1]}.get(func._opname, args[0])
            outputs = args[0] if func._opname in ('gather_', 'allgather_') else []
            self.sent += num_bytes(inputs)
            self.received += num_bytes(outputs)
        return func(*args, **(kwargs or {}))


def num_bytes(tensors):
    if isinstance(tensors, torch.Tensor):
        return tensors.nbytes
    return sum(num_bytes(t) for t in tensors)


class Images(list):
    metainfo = {'classes': tuple(f'class {i}' for i in range(CLASSES))}


class Trainer:
    """What PFBRecordHook needs of a runner."""

    def __init__(self, model):
        self.model, self.iter, self.max_iters, self.hooks = model, 0, 160_000, []
        self.train_dataloader = DataLoader(Images(range(IMAGES)), batch_size=IMAGES)


def batch(rng):
    """Unlike file names, as in a data set that is too large to meet an image twice."""
    labels = torch.from_numpy(rng.integers(0, CLASSES, (IMAGES, 1, 8, 8)))
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label)) for label in labels]
    for sample in samples:
        sample.set_metainfo(
            {
                'img_path': f'data/set/images/training/ADE_train_{rng.integers(10**8):08d}.jpg',
                PLACE: int(rng.integers(10**8)),
            }
        )
    return samples


def run(folder: str) -> None:
    """100 iterations of 16 images and 150 classes; what it sent and received goes to FOLDER."""
    rng = np.random.default_rng(dist.get_rank())
    model = tiny.build()
    trainer, hook = Trainer(model), PFBRecordHook()
    hook.before_train(trainer)
    with WatchCollectives() as watch:
        for trainer.iter in range(ITERATIONS):
            kept = torch.from_numpy(np.sort(rng.permutation(IMAGES)[: IMAGES // 2]))
            scores = torch.from_numpy(rng.normal(20, 15, IMAGES).astype('float32'))
            selection = Selection(IMAGES, indices=kept, score=scores, score_name='log_density')
            selection.samples = batch(rng)
            model.pfb.selections = [selection]
            model.pfb.num_images = IMAGES
            hook.after_train_iter(trainer, trainer.iter)
    seen = {name: getattr(watch, name) for name in ('calls', 'sent', 'received')}
    record = hook.record
    seen |= dict(candidates=int(record.candidates.sum()), kept=int(record.kept.sum()))
    torch.save(seen, Path(folder) / f'{dist.get_rank()}.pt')
