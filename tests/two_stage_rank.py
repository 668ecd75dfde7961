"""What one of the two processes of test_two_stage.py does."""

from pathlib import Path

import torch
from demo_runs import distributed, train
from mmengine.dist import get_rank
from test_baselines import method_config


def run(folder):
    config = method_config(Path(folder), 'two_stage', 0.75, max_iters=12)
    config.custom_hooks.append(dict(type='DiaryHook'))
    runner = train(distributed(config))
    state = runner.train_dataloader.batch_sampler.state_dict()
    weights = dict(runner.model.module.named_parameters())
    torch.save(dict(state=state, weights=weights), Path(folder, f'{get_rank()}.pt'))
