"""What one process of test_distributed.py does. What it saw goes to FOLDER/<rank>.pt."""

import itertools
import os
import signal
import time
from pathlib import Path

import tiny
import torch
from demo_runs import demo_config, distributed, float64, train
from mmcv.transforms import BaseTransform
from mmengine.dist import get_dist_info
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS, HOOKS
from mmseg.registry import TRANSFORMS
from test_no_sync import syncs
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from pfb_mmseg.core import CRITERIA, BatchPruner, FeatureCandidates

NUM, DIM = 4, 8  # images per rank, channels
SHORT = 12  # the iteration in which rank 1 has fewer images
POISONED = 15  # the iteration in which an image of rank 1 is not finite
ITERATIONS = 40
PRUNE_RATIO = 0.35
# Of the steps in which the exit's loss over all images teaches: which, and the ranks' batches.
TAUGHT = [(strategy, exit) for strategy in ('two_pass', 'single_pass') for exit in ('own', None)]
SIZES = [(4, 4), (4, 3), (4, 1)]
UNNORMALISED = dict(norm_cfg=dict(type='GN', num_groups=2), dropout_ratio=0)


@DATA_SAMPLERS.register_module()
class BlockSampler:
    """Gives one process the batch that several get as consecutive blocks."""

    def __init__(self, dataset, whole, seed=0):
        self.size, self.whole, self.seed = len(dataset), whole, seed

    def __iter__(self):
        rank, world_size = get_dist_info()
        share = self.whole // world_size
        generator = torch.Generator().manual_seed(self.seed)
        endless = (
            i
            for _ in itertools.count()
            for i in torch.randperm(self.size, generator=generator).tolist()
        )
        while True:
            yield from list(itertools.islice(endless, self.whole))[rank * share :][:share]

    def __len__(self):
        return self.size


@TRANSFORMS.register_module()
class EmptyLabels(BaseTransform):
    """Rank 1 has nothing but pixels to be ignored."""

    def transform(self, results):
        if get_dist_info()[0] == 1:
            results['gt_seg_map'].fill(255)
        return results


@HOOKS.register_module()
class Leave(Hook):
    """Rank 1 does not come to the next collective: it hangs, or dies."""

    priority = 'NORMAL'

    def __init__(self, how):
        self.how = how

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 6 and runner.rank == 1:
            if self.how == 'die':
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(120)


@CRITERIA.register_module()
def hardest_of_four(candidates):
    """(N,) importance by the place among the four images that would be on one rank."""
    return candidates.exit_losses().view(-1, 4).argsort(dim=1).argsort(dim=1).flatten().float()


def pruner():
    rare = dict(type='rare', estimator=dict(num_centroids=6, dim=DIM))
    return BatchPruner(PRUNE_RATIO, rare)


def whole_batch(iteration, world_size):
    """(world_size * NUM, DIM), the images of all ranks; as many kinds as a stream needs."""
    generator = torch.Generator().manual_seed(iteration)
    scale = torch.rand(world_size * NUM, 1, generator=generator)
    return scale * torch.randn(world_size * NUM, DIM, generator=generator)


def part(whole, rank, iteration):
    """What one rank sees of it."""
    mine = whole[rank * NUM :][:NUM].clone()
    if rank == 1 and iteration == SHORT:
        mine = mine[:1]
    if rank == 1 and iteration == POISONED:
        mine[2, 3] = torch.nan
    return mine


def follow():
    """A stream of batches, with a short one and a poisoned one: what was kept, and the state."""
    rank, world_size = get_dist_info()
    chosen = pruner()
    steps = []
    for iteration in range(ITERATIONS):
        mine = part(whole_batch(iteration, world_size), rank, iteration)
        with chosen.select(FeatureCandidates(mine)) as decision:
            rows, selection = decision.take(mine), decision.selection
        steps.append(dict(rows=rows, kept=selection.kept, log_density=selection.score))
    return dict(steps=steps, step=chosen.step, state=chosen.state_dict())


def waits():
    """What makes the host wait in any step but the first, when the ranks agree on the size."""
    rank, world_size = get_dist_info()
    chosen = pruner()

    def step():
        mine = part(whole_batch(0, world_size), rank, 0)
        with chosen.select(FeatureCandidates(mine)) as decision:
            decision.take(mine)

    step()
    found = [syncs(step) for _ in range(4)]
    assert chosen.ready
    return found


def grown():
    """What is said of a batch that is larger than the first one."""
    chosen = pruner()
    chosen(torch.rand(NUM, DIM))
    return refusal(lambda: chosen(torch.rand(NUM + 1, DIM)))


def refusal(call):
    try:
        call()
    except ValueError as error:
        return str(error)


def run_config(work_dir, images, max_iters=50, **options):
    """A run that does the same however its 8 images are spread over processes."""
    norm = dict(type='GN', num_groups=4, requires_grad=True)
    return demo_config(
        work_dir,
        max_iters,
        **{
            'model.backbone.norm_cfg': norm,
            'model.decode_head.norm_cfg': norm,
            'model.auxiliary_head.norm_cfg': norm,
            'model.pfb.criterion': dict(_delete_=True, type='hardest_of_four'),
            'model.pfb.exit_loss_weight': 1.0,
            'train_dataloader.batch_size': images,
            'train_dataloader.sampler': dict(_delete_=True, type='BlockSampler', whole=8),
            'custom_hooks': [dict(type='DiaryHook'), dict(type='PFBHook', begin=0.1, end=1.0)],
            'default_hooks.checkpoint.interval': max_iters,
            **options,
        },
    )


def result(model):
    """Weights and buffers of the network, and the estimate, where there is one."""
    pruner, state = model.pfb.pruner, model.state_dict()
    names = () if pruner.estimator is None else ('centroids', 'counts', 'idle')
    return dict(
        network={name: value for name, value in state.items() if not name.startswith('pfb.')},
        estimate={name: getattr(pruner.estimator, name).clone() for name in names},
        step=pruner.step,
    )


def run(config):
    return result(train(distributed(config)).model.module)


def core():
    return dict(core=follow(), waits=waits(), grown=grown())


def save(seen, folder):
    torch.save(seen, folder / f'{dist.get_rank()}.pt')


def two(folder):
    folder = Path(folder)
    seen = core()
    with float64():
        seen['run'] = run(run_config(folder / 'run', 4))
    save(seen, folder)


def four(folder):
    folder = Path(folder)
    # Two images a rank at 30 %: one or two are kept. An epoch of rank 0 ends with a single image.
    options = {
        'model.pfb.prune_ratio': 0.3,
        'train_dataloader.batch_size': 2,
        'train_dataloader.dataset.length': 4 * 32 + 1,
        'train_dataloader.sampler': dict(type='DefaultSampler', round_up=False),
    }
    config = demo_config(folder / 'run', 50, **options)
    config.train_dataloader.dataset.pipeline.insert(2, dict(type='EmptyLabels'))
    save(core() | dict(run=run(config)), folder)


def taught_step(model, images, samples):
    """What one step leaves behind, as a step of DDP."""
    before = {name: p.detach().clone() for name, p in model.module.named_parameters()}
    exit_before = model.module.pfb.get_extra_state().clone()
    model.zero_grad()
    tiny.total(model(images, samples, mode='loss')).backward()
    selection = model.module.pfb.selection
    return dict(
        before=before,
        exit_before=exit_before,
        exit=model.module.pfb.get_extra_state(),
        kept=selection.indices,
        score=selection.score,
        gradients=tiny.gradients(model.module),
    )


def taught(folder):
    """Steps in which the early exit's loss teaches the shallow part; the last ones are short."""
    rank, _ = get_dist_info()
    seen = {}
    for strategy, exit in TAUGHT:
        pfb = dict(criterion='hard', strategy=strategy, exit=exit)
        model = tiny.warm(tiny.build(pfb, UNNORMALISED, norm_eval=True).double(), 4)
        wrapped = DistributedDataParallel(model, broadcast_buffers=False)
        optimizer = torch.optim.SGD(wrapped.parameters(), 0.05)
        seen[strategy, exit] = []
        for step, sizes in enumerate(SIZES):
            seen[strategy, exit].append(taught_step(wrapped, *taught_batch(step, rank, sizes)))
            optimizer.step()
    save(seen, Path(folder))


def taught_batch(step, rank, sizes):
    """Images and samples of one rank."""
    images = tiny.images(seed=step, dtype=torch.float64)[4 * rank :][: sizes[rank]]
    return images, tiny.samples(seed=step)[4 * rank :][: sizes[rank]]


def left_alone(how, folder):
    folder = Path(folder)
    config = run_config(folder / 'run', 4, log_level='ERROR')
    config.custom_hooks.append(dict(type='Leave', how=how))
    save(run(config), folder)
