"""What one process of test_ranks.py does. What it saw goes to FOLDER/<rank>.pt."""

import itertools
import pickle
from pathlib import Path

import torch
from demo_runs import demo_config, distributed, float64, train
from mmengine.registry import DATA_SAMPLERS
from torch import distributed as dist
from torch import nn

from pfb_mmseg.blocking import least_trainable
from pfb_mmseg.core import BatchPruner
from pfb_mmseg.core.candidates import FeatureCandidates
from pfb_mmseg.core.ranks import Ranks

NUM, DIM, ITERATIONS = 4, 8, 20  # images per process, channels
GROUP = 'group_rank.data_parallel_group'
_made = []


def data_parallel_group():
    """0 with 2, and 1 with 3: processes 0 and 1 hold the parts of one model. Made in one call."""
    _made.append(GROUP)
    groups = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    return groups[dist.get_rank() % 2]


def of_others():
    """A group that half of the processes are not in."""
    return dist.new_group([0, 2])


def alone():
    """Every process by itself: all four hold parts of one model."""
    return [dist.new_group([rank]) for rank in range(4)][dist.get_rank()]


@DATA_SAMPLERS.register_module()
class PairSampler:
    """Deals batches of 8 out to two data-parallel ranks, each one process or two in a row."""

    def __init__(self, dataset, seed=0):
        self.size, self.seed = len(dataset), seed

    def __iter__(self):
        rank = dist.get_rank() * 2 // dist.get_world_size()
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            order = torch.randperm(self.size, generator=generator).tolist()
            for start in range(0, self.size, 8):
                yield from order[start:][:8][rank * 4 :][:4]

    def __len__(self):
        return self.size


def rare(num_centroids=6):
    return dict(type='rare', estimator=dict(num_centroids=num_centroids, dim=DIM))


def follow(stream, process_group=None):
    """A stream of batches: which images were kept and gone on with, and the state at the end."""
    pruner = BatchPruner(0.5, rare(), process_group=process_group)
    # Of the first of the processes that hold one model, so that all of them see the same.
    rank, steps = dist.get_rank() * 2 // dist.get_world_size(), []
    for iteration in range(ITERATIONS):
        generator = torch.Generator().manual_seed(1000 * stream + iteration)
        features = torch.randn(2, NUM, DIM, generator=generator)[rank]
        with pruner.select(FeatureCandidates(features)) as decision:
            steps.append((decision.selection.kept, decision.take(features)))
    return dict(steps=steps, state=pruner.state_dict())


def run(work_dir, **options):
    """The same however many processes hold one model; what rank 0 is told goes to the log."""
    norm = dict(type='GN', num_groups=4, requires_grad=True)
    config = demo_config(
        work_dir,
        20,
        **{
            'model.backbone.norm_cfg': norm,
            'model.decode_head.norm_cfg': norm,
            'model.auxiliary_head.norm_cfg': norm,
            'train_dataloader.sampler': dict(_delete_=True, type='PairSampler'),
            'custom_hooks': [dict(type='DiaryHook'), dict(type='PFBHook', begin=2, end=1.0)],
            'default_hooks.checkpoint.interval': 20,
            'log_level': 'INFO',
            **options,
        },
    )
    with float64():
        model = train(distributed(config)).model.module
    return {name: value for name, value in model.state_dict().items() if 'pfb' not in name}


def refusal(process_group):
    try:
        _ = Ranks(process_group).size
    except (TypeError, ValueError) as error:
        return str(error)


def unpicklable(process_group):
    """What is said of a group, which is no data."""
    try:
        pickle.dumps(Ranks(process_group))
    except TypeError as error:
        return str(error)


def two(folder):
    """A process for each data-parallel rank: what the groups must come to, each by itself."""
    folder = Path(folder)
    seen = dict(streams=[follow(stream) for stream in range(2)])
    torch.save(seen | dict(network=run(folder / 'run')), folder / f'{dist.get_rank()}.pt')


def four(folder):
    folder, stream = Path(folder), dist.get_rank() % 2
    seen = dict(stream=follow(stream, GROUP))
    seen['calls'] = len(_made)
    seen['network'] = run(folder / 'run', **{'model.pfb.process_group': GROUP})
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.SyncBatchNorm(8))
    ranks = (Ranks(), Ranks(data_parallel_group), Ranks(alone))
    seen['least'] = [least_trainable(head, one) for one in ranks]
    seen['refused'] = refusal(of_others)
    seen['unpicklable'] = unpicklable(data_parallel_group())
    torch.save(seen, folder / f'{dist.get_rank()}.pt')


def short(folder):
    """The first blocked batch is an epoch's last, of 2 images instead of 4."""
    folder = Path(folder)
    options = {
        'train_dataloader.dataset.length': 20,
        'train_dataloader.sampler': dict(_delete_=True, type='DefaultSampler'),
        'model.pfb.criterion.estimator.num_centroids': 4,
        'custom_hooks': [dict(type='DiaryHook'), dict(type='PFBHook', begin=2, end=1.0)],
        'default_hooks.checkpoint.interval': 8,
    }
    train(distributed(demo_config(folder / 'run', 8, **options)))
    # A loop of one's own, without the hook, goes on from that checkpoint with a short batch.
    checkpoint = torch.load(folder / 'run' / 'iter_8.pth', weights_only=False)
    state = checkpoint['state_dict']['pfb.pruner._extra_state']
    pruner = BatchPruner(0.5, rare(num_centroids=4))
    pruner.set_extra_state(state)
    kept = [pruner(torch.rand(num, DIM)).num_kept for num in itertools.chain([2], [NUM] * 3)]
    torch.save(dict(state=state.tolist(), kept=kept), folder / f'{dist.get_rank()}.pt')
