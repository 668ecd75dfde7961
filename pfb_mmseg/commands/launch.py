"""What the commands do with a config before a run: read it, and prepare the launch."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from pickle import UnpicklingError

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.utils import import_modules_from_strings

from ..compat import find_distributions, why_no_resume
from ..convert.apply import type_name
from ..shipped import find_config


def named_config(
    parser: argparse.ArgumentParser, args: argparse.Namespace, needs: str = 'model'
) -> Config:
    """Reads the config that the arguments name, with --cfg-options merged in and its custom_imports
    imported. It must have a dict called ``needs``; what is wrong is an error of the parser."""
    try:
        cfg = Config.fromfile(find_config(args.config))
    except ValueError as error:  # there is no such config
        parser.error(str(error))
    except (ImportError, OSError, SyntaxError) as error:
        parser.error(f'config {args.config!r} cannot be read: {error}')
    try:
        cfg.merge_from_dict(args.cfg_options or {})
    except (AttributeError, KeyError, TypeError) as error:
        parser.error(f'--cfg-options do not fit the config: {error}')
    if modules := cfg.get('custom_imports'):
        try:  # MMEngine imports those of the file alone, not those of --cfg-options
            import_modules_from_strings(**modules)
        except (ImportError, TypeError) as error:
            parser.error(f'custom_imports={modules}: {error}')
    if not isinstance(cfg.get(needs), dict):
        parser.error(f'config {args.config!r} has no {needs}: expected the config of a model')
    return cfg


def load_config(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Config:
    """Reads the config of a run, see :func:`named_config`, and prepares its launch."""
    cfg = named_config(parser, args)
    default = str(Path('work_dirs', Path(cfg.filename).stem))
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or default
    cfg.launcher = args.launcher
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return cfg


@contextmanager
def cpu_launch(cfg: Config) -> Iterator[None]:
    """Lets a run under torchrun work without a GPU: MMEngine's start-up would ask for one."""
    if cfg.launcher != 'pytorch' or torch.cuda.is_available():
        yield
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
    yield
    # Threads of gloo that are still there when Python ends would abort a process that is done.
    torch.distributed.destroy_process_group()


def turn_on_amp(cfg: Config) -> None:
    """Makes the optimizer wrapper one with mixed precision and dynamic loss scaling."""
    name = type_name(cfg.optim_wrapper.get('type', 'OptimWrapper'))
    if name == 'AmpOptimWrapper':
        say('--amp: the config trains with mixed precision already')
        return
    if name != 'OptimWrapper':
        raise ValueError(
            f'--amp: optim_wrapper.type={name!r} has no counterpart with mixed precision; use '
            "'OptimWrapper' or set the wrapper in the config"
        )
    if get_device() == 'cpu':
        raise ValueError('--amp: mixed precision needs a GPU, and none was found; leave --amp out')
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.loss_scale = 'dynamic'


@contextmanager
def explain_refused_checkpoint() -> Iterator[None]:
    """Ends the tool in a sentence where MMEngine cannot read its own checkpoints."""
    try:
        yield
    except UnpicklingError:
        reason = why_no_resume(find_distributions(), torch.__version__)
        if reason is None:
            raise
        sys.exit(reason)


def say(sentence: str) -> None:
    """Prints a sentence, from the first process of a run only."""
    rank = os.environ.get('RANK') or os.environ.get('SLURM_PROCID') or '0'
    if rank == '0':
        print(sentence, flush=True)
