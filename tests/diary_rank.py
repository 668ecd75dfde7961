"""One process of a distributed run that breaks down: diary_rank.py WORK_DIR [KEY=NUMBER ...]."""

import sys
from pathlib import Path

import torch
from demo_runs import demo_config, train


def main() -> None:
    torch.distributed.init_process_group('gloo')
    hooks = [dict(type='DiaryHook', fail_at=9), dict(type='PFBHook', begin=1, end=1.0)]
    options = {key: int(value) for key, _, value in (a.partition('=') for a in sys.argv[2:])}
    config = demo_config(Path(sys.argv[1]), custom_hooks=hooks, **options)
    config.launcher = 'pytorch'
    config.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel', broadcast_buffers=False, device_ids=None
    )
    train(config)


if __name__ == '__main__':
    main()
