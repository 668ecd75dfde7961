"""What the tools that take a config have in common: arguments, and how a run is prepared."""

import argparse
import os
from datetime import timedelta
from pathlib import Path

import torch
from mmengine.config import Config, DictAction


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that both tools have, named as mmseg users know them."""
    parser.add_argument('--work-dir', help='folder for logs and checkpoints')
    add_config_options(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes of a distributed run were started',
    )
    parser.add_argument(
        '--local_rank', '--local-rank', type=int, default=0, help='set by a launcher'
    )


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Adds --cfg-options."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='settings that override the config, e.g. model.pfb.prune_ratio=0.5 '
        'optim_wrapper.optimizer.lr=0.02; lists as key="[a,b]" without spaces',
    )


def read_config(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Config:
    """Reads the config that the arguments name, with --cfg-options merged in."""
    if not Path(args.config).is_file():
        parser.error(f'config {args.config!r} is not a file')
    cfg = Config.fromfile(args.config)
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    return cfg


def load_config(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Config:
    """Reads the config of a run, see :func:`read_config`, and prepares its launch.

    The work dir is, in this order: --work-dir, the config's, ./work_dirs/<name of the config>.
    """
    cfg = read_config(parser, args)
    default = str(Path('work_dirs', Path(args.config).stem))
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or default
    cfg.launcher = args.launcher
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return cfg


def prepare_cpu_launch(cfg: Config) -> None:
    """Lets a run under torchrun work without a GPU: MMEngine's start-up would ask for one."""
    if cfg.launcher != 'pytorch' or torch.cuda.is_available():
        return
    seconds = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout', 1800)
    torch.distributed.init_process_group('gloo', timeout=timedelta(seconds=seconds))
    if cfg.get('model_wrapper_cfg') is None:
        cfg.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel',
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
            device_ids=None,
        )
    say('No GPU: the processes talk over gloo, and the model is wrapped for the CPU.')


def say(sentence: str) -> None:
    """Prints a sentence, from the first process of a run only."""
    rank = os.environ.get('RANK') or os.environ.get('SLURM_PROCID') or '0'
    if rank == '0':
        print(sentence, flush=True)
