"""How arguments are read: what the command lines have in common."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


class ToolParser(argparse.ArgumentParser):
    """An argument parser that names what a misspelt option or choice is likely to mean."""

    def error(self, message: str) -> NoReturn:
        if unknown := re.match(r'unrecognized arguments: ([^\s=]+)', message):
            known = [*self._option_string_actions]
        elif unknown := re.search(r"invalid choice: '([^']+)' \(choose from (.+)\)$", message):
            known = re.findall(r'[\w-]+', unknown[2])
        near = difflib.get_close_matches(unknown[1], known, n=1) if unknown else []
        super().error(f'{message} (did you mean {near[0]}?)' if near else message)


def pair(text: str) -> str:
    """The type of KEY=VALUE, which MMEngine's DictAction reads."""
    if not text.partition('=')[0] or '=' not in text:
        raise argparse.ArgumentTypeError(f'{text!r}: expected KEY=VALUE')
    return text


def check_checkpoint(parser: argparse.ArgumentParser, path: str) -> None:
    """End the tool if the path of a checkpoint is neither a file nor a URL."""
    if '://' not in path and not Path(path).is_file():
        parser.error(f'checkpoint {path!r} is not a file')


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """The type of an argument that is an integer in [low, high), or at least ``low``."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < low or (high is not None and int(text) >= high):
            wanted = f'>= {low}' if high is None else f'in [{low}, {high})'
            raise argparse.ArgumentTypeError(f'{text!r}: expected an integer {wanted}')
        return int(text)

    return read


def share(text: str) -> float:
    """The type of an argument that is a share of the images."""
    try:
        value = float(text)
    except ValueError:
        value = float('nan')
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f'{text!r}: expected a number in (0, 1)')
    return value


seed_number = whole(0, 2**32)


def add_config(parser: argparse.ArgumentParser) -> None:
    """Adds CONFIG and --cfg-options."""
    about = 'config file, or the name of one that comes with pfb_mmseg; with PFB or without'
    parser.add_argument('config', help=about)
    add_config_options(parser)


def add_config_options(parser: argparse.ArgumentParser) -> None:
    from mmengine.config import DictAction

    parser.add_argument(
        '--cfg-options',
        nargs='+',
        type=pair,
        action=DictAction,
        metavar='KEY=VALUE',
        help='settings that override the config, e.g. model.pfb.prune_ratio=0.5 '
        'optim_wrapper.optimizer.lr=0.02; lists as key="[a,b]" without spaces',
    )


def add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that training and testing share, named as mmseg users know them."""
    parser.add_argument('--work-dir', help='folder for logs and checkpoints')
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes of a distributed run were started',
    )
    parser.add_argument(
        '--local_rank', '--local-rank', type=int, default=0, help='set by a launcher'
    )
