"""One process of a distributed run that breaks down: diary_rank.py WORK_DIR [KEY=NUMBER ...]."""

import sys
from pathlib import Path

import torch
from demo_runs import demo_config, distributed, train


def main() -> None:
    torch.distributed.init_process_group('gloo')
    hooks = [dict(type='DiaryHook', fail_at=9), dict(type='PFBHook', begin=1, end=1.0)]
    options = {key: int(value) for key, _, value in (a.partition('=') for a in sys.argv[2:])}
    train(distributed(demo_config(Path(sys.argv[1]), custom_hooks=hooks, **options)))


if __name__ == '__main__':
    main()
