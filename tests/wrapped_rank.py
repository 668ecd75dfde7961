"""One process of a run in one wrapper after the other, started by test_wrappers.py.

What it saw goes to FOLDER/<rank>.pt.
"""

import time
from copy import deepcopy
from functools import partial
from pathlib import Path

import tiny
import torch
from demo_runs import demo_config
from mmengine._strategy import FSDPStrategy
from mmengine.hooks import Hook
from mmengine.model import MMFullyShardedDataParallel, is_model_wrapper
from mmengine.registry import HOOKS, MODEL_WRAPPERS, init_default_scope
from mmengine.registry import STRATEGIES as REGISTRY
from mmengine.runner._flexible_runner import FlexibleRunner
from mmseg.registry import MODELS
from torch import distributed as dist
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp import MixedPrecision
from torch.distributed.fsdp.wrap import CustomPolicy
from torch.nn.parallel import DistributedDataParallel as DDP

from pfb_mmseg.report import SelectionRecord

STEPS = 3
BATCH = 6  # images per rank
SAVED = 6  # iterations before the checkpoint of a run with MMEngine
# Options of PFB by name: the paper's step, and those in which an early exit teaches.
WAYS = {
    'two_pass': dict(strategy='two_pass'),
    'single_pass': dict(strategy='single_pass'),
    'two_pass, taught by an exit of its own': dict(
        strategy='two_pass', criterion='hard', exit='own'
    ),
    'single_pass, taught': dict(strategy='single_pass', criterion='hard'),
}
PREFIXES = ('_fsdp_wrapped_module.', '_checkpoint_wrapped_module.', 'module.')


def build(pfb):
    """The same small model in every process, whose next step is blocked."""
    init_default_scope('mmseg')
    torch.manual_seed(0)
    model = MODELS.build(tiny.model_cfg(pfb=pfb)).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout2d):
            module.p = 0.0
    estimator = model.pfb.estimator
    if estimator is not None:
        generator = torch.Generator().manual_seed(1)
        estimator.update(torch.rand(estimator.num_centroids, estimator.dim, generator=generator))
    if pfb.get('exit') == 'own':
        tiny.warm(model, BATCH)
    return model


def units(model, kind):
    """The modules that are wrapped one by one, besides the whole."""
    backbone = model.backbone
    stages = [backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4]
    return dict(root=[], stages=stages, backbone=[backbone], both=[*stages, backbone])[kind]


def ddp(model):
    return DDP(model, broadcast_buffers=False)


def fsdp1(model, kind, **options):
    chosen = units(model, kind)
    policy = CustomPolicy(lambda module: any(module is unit for unit in chosen))
    return FSDP(model, auto_wrap_policy=policy, device_id=torch.device('cpu'), **options)


def fsdp2(model, kind):
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh('cpu', (dist.get_world_size(),))
    for unit in units(model, kind):
        fully_shard(unit, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def checkpointed(model, wrap):
    """The whole backbone is run again in the backward pass."""
    wrapped = wrap(model)
    backbone = model.backbone
    apply_activation_checkpointing(wrapped, check_fn=lambda module: module is backbone)
    return wrapped


WRAPPERS = {
    'DDP': ddp,
    'FSDP1 root': partial(fsdp1, kind='root', use_orig_params=True),
    'FSDP1 root, flat parameters': partial(fsdp1, kind='root'),
    'FSDP1 stages': partial(fsdp1, kind='stages', use_orig_params=True),
    'FSDP1 backbone': partial(fsdp1, kind='backbone', use_orig_params=True),
    'FSDP1 backbone, flat parameters': partial(fsdp1, kind='backbone'),
    'FSDP2 root': partial(fsdp2, kind='root'),
    'FSDP2 stages': partial(fsdp2, kind='stages'),
    'FSDP2 backbone': partial(fsdp2, kind='backbone'),
    'DDP, checkpointed': partial(checkpointed, wrap=ddp),
    'FSDP1 backbone, checkpointed': partial(
        checkpointed, wrap=partial(fsdp1, kind='both', use_orig_params=True)
    ),
}


def state(model, wrapped):
    """Parameters in full by their own names, and the buffers of this process."""
    if isinstance(wrapped, FSDP):
        with FSDP.summon_full_params(wrapped, writeback=False):
            return {clean(name): p.detach().clone() for name, p in wrapped.named_parameters()}
    return {
        clean(name): (p.full_tensor() if hasattr(p, 'full_tensor') else p).detach().clone()
        for name, p in model.named_parameters()
    }


def clean(name):
    for prefix in PREFIXES:
        name = name.replace(prefix, '')
    return name


def train(model, wrap):
    """The images kept in each step, the losses, the weights and the state behind the last."""
    wrapped = wrap(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), 0.05, momentum=0.9)
    kept, losses = [], []
    for step in range(STEPS):
        seed = step * dist.get_world_size() + dist.get_rank()
        images = tiny.images(BATCH, seed=seed, dtype=torch.float64)
        loss = tiny.total(wrapped(images, tiny.samples(BATCH, seed=seed), mode='loss'))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
        kept.append(model.pfb.selection.indices.tolist())
    buffers = {clean(name): buffer.clone() for name, buffer in wrapped.named_buffers()}
    return dict(
        kept=kept,
        losses=losses,
        weights=state(model, wrapped),
        buffers=buffers,
        estimate=estimate(model),
    )


def estimate(model):
    """Of the density, and the state of the exit."""
    estimator, exit = model.pfb.estimator, dict(exit=model.pfb.get_extra_state())
    if estimator is None:
        return exit
    return exit | dict(centroids=estimator.centroids.clone(), counts=estimator.counts.clone())


def half(model):
    """Every unit computes in bfloat16."""
    mixed = MixedPrecision(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    return fsdp1(model, 'both', use_orig_params=True, mixed_precision=mixed)


def save(seen, folder):
    torch.save(seen, Path(folder) / f'{dist.get_rank()}.pt')


def wrappers(folder):
    torch.set_default_dtype(torch.float64)
    seen = {}
    for way, pfb in WAYS.items():
        model = build(pfb)
        for name, wrap in WRAPPERS.items():
            seen[way, name] = train(deepcopy(model), wrap)
    torch.set_default_dtype(torch.float32)
    save(seen | {'half': train(build(WAYS['two_pass']), half)}, folder)


@MODEL_WRAPPERS.register_module()
class FSDPOnCPU(MMFullyShardedDataParallel):
    def __init__(self, module, device_id, **kwargs):
        super().__init__(module, device_id=torch.device('cpu'), **kwargs)


@REGISTRY.register_module()
class ResumableFSDPStrategy(FSDPStrategy):
    """MMEngine's own passes its arguments in the order of torch 2.0, and fails to resume."""

    def load_optim_state_dict(self, state_dict):
        optimizer = self.optim_wrapper.optimizer
        loadable = FSDP.optim_state_dict_to_load(self.model, optimizer, state_dict)
        self.optim_wrapper.load_state_dict(loadable)


ON_CPU = dict(type='MMDistributedDataParallel', broadcast_buffers=False, device_ids=None)
SHARDED = dict(type='ResumableFSDPStrategy', model_wrapper=dict(type='FSDPOnCPU'))
# As 'full', but for the offloading: on a CPU, torch keeps a tensor there that it then frees.
FULL = dict(
    state_dict_type='FULL_STATE_DICT',
    state_dict_config=dict(type='FullStateDictConfig', rank0_only=True),
    optim_state_dict_config=dict(type='FullOptimStateDictConfig', rank0_only=True),
)
FLEXIBLE = {
    'DDPStrategy': dict(type='DDPStrategy', model_wrapper=ON_CPU),
    'FSDPStrategy, local': SHARDED,
    'FSDPStrategy, full': SHARDED | dict(state_dict_cfg=FULL),
}


@HOOKS.register_module()
class LookAtRecord(Hook):
    """Reads the record that lies beside the checkpoint, once every process has saved it."""

    priority = 'LOWEST'
    found = None

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == SAVED:
            dist.barrier()
            self.found = SelectionRecord.load(Path(runner.work_dir) / 'pfb_record.npz')


def run(work_dir, strategy, resume=None):
    """A run of 9 iterations, the last three after a checkpoint; what is left of it."""
    look = LookAtRecord()
    hooks = [dict(type='DiaryHook'), dict(type='PFBHook', begin=1, end=1.0)]
    options = {'default_hooks.checkpoint.interval': SAVED, 'train_dataloader.num_workers': 0}
    config = demo_config(work_dir, 9, custom_hooks=hooks, **options)
    config.train_dataloader.persistent_workers = False
    config.strategy = strategy
    config.load_from, config.resume = resume, resume is not None
    config.experiment_name = config.visualizer.name = f'run-{time.perf_counter_ns()}'
    runner = FlexibleRunner.from_cfg(config)
    runner.register_hook(look)
    runner.train()
    host = runner.model.module if is_model_wrapper(runner.model) else runner.model
    return dict(
        weights=state(host, runner.model),
        estimate=estimate(host),
        record=look.found,
    )


def strategies(folder):
    torch.set_default_dtype(torch.float64)
    folder, seen = Path(folder), {}
    for name, strategy in FLEXIBLE.items():
        whole, resumed = folder / f'{name} whole', folder / f'{name} resumed'
        seen[name, 'whole'] = run(whole, strategy)
        seen[name, 'resumed'] = run(resumed, strategy, str(whole / f'iter_{SAVED}.pth'))
    save(seen, folder)
