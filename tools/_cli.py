"""What the tools have in common: how arguments and configs are read, and a run is prepared."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NoReturn

import torch
from mmengine.config import Config, DictAction

from pfb_mmseg.compat import find_distributions, why_no_resume


class ToolParser(argparse.ArgumentParser):
    """An argument parser that names the option which a misspelt one is likely to mean."""

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix('unrecognized arguments: ').split('=')[0].split()
        known = [*self._option_string_actions]
        near = difflib.get_close_matches(unknown[0], known, n=1) if unknown else []
        hint = f' (did you mean {near[0]}?)' if message.startswith('unrecognized') and near else ''
        super().error(f'{message}{hint}')


class KeyValueAction(DictAction):
    """Reads KEY=VALUE pairs, and says so where it gets something else."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        for value in values:
            if not value.partition('=')[0] or '=' not in value:
                raise argparse.ArgumentError(self, f'{value!r}: expected KEY=VALUE')
        super().__call__(parser, namespace, values, option_string)


def seed_number(text: str) -> int:
    """The type of an argument that is a seed."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f'{text!r}: expected an integer in [0, 2**32)')
    return int(text)


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
        action=KeyValueAction,
        metavar='KEY=VALUE',
        help='settings that override the config, e.g. model.pfb.prune_ratio=0.5 '
        'optim_wrapper.optimizer.lr=0.02; lists as key="[a,b]" without spaces',
    )


def read_config(path: str, options: dict | None, needs: str = 'model') -> Config:
    """Reads the config of a segmentor, with the options of --cfg-options merged in.

    Args:
        path: config file.
        options: of --cfg-options.
        needs: name of a dict that the config must have.

    Raises:
        ValueError: There is no such file, it cannot be read, or lacks what is needed.
    """
    if not Path(path).is_file():
        raise ValueError(f'config {path!r} is not a file')
    try:
        cfg = Config.fromfile(path)
    except (OSError, SyntaxError) as error:
        raise ValueError(f'config {path!r} cannot be read: {error}') from error
    try:
        cfg.merge_from_dict(options or {})
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f'--cfg-options do not fit the config: {error}') from error
    if not isinstance(cfg.get(needs), dict):
        raise ValueError(f'config {path!r} has no {needs}: expected the config of a segmentor')
    return cfg


def named_config(
    parser: argparse.ArgumentParser, args: argparse.Namespace, needs: str = 'model'
) -> Config:
    """The config that the arguments name, see :func:`read_config`; or an error of the parser."""
    try:
        return read_config(args.config, args.cfg_options, needs)
    except ValueError as error:
        parser.error(str(error))


def load_config(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Config:
    """Reads the config of a run, see :func:`named_config`, and prepares its launch.

    The work dir is, in this order: --work-dir, the config's, ./work_dirs/<name of the config>.
    """
    cfg = named_config(parser, args)
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
