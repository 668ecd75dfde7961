"""How arguments are read: what the command lines have in common."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable
from typing import Any, NoReturn


class ToolParser(argparse.ArgumentParser):
    """An argument parser that names what a misspelt option or choice is likely to mean."""

    def error(self, message: str) -> NoReturn:
        if unknown := re.match(r'unrecognized arguments: ([^\s=]+)', message):
            known = [*self._option_string_actions]
        elif unknown := re.search(r"invalid choice: '([^']+)' \(choose from (.+)\)$", message):
            known = re.findall(r'[\w-]+', unknown[2])
        near = difflib.get_close_matches(unknown[1], known, n=1) if unknown else []
        super().error(f'{message} (did you mean {near[0]}?)' if near else message)


class KeyValueAction(argparse.Action):
    """Reads KEY=VALUE pairs as MMEngine's DictAction does, and says so where it gets else."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        from mmengine.config import DictAction

        for value in values:
            if not value.partition('=')[0] or '=' not in value:
                raise argparse.ArgumentError(self, f'{value!r}: expected KEY=VALUE')
        read = DictAction(self.option_strings, self.dest)
        read(parser, namespace, values, option_string)


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


def add_config(
    parser: argparse.ArgumentParser,
    about: str = 'with PFB or without',
    default: str | None = None,
) -> None:
    """Adds CONFIG, which may be left out where there is a default."""
    parser.add_argument(
        'config',
        nargs='?' if default else None,
        default=default,
        help=f'config file, or the name of one that comes with pfb_mmseg; {about}'
        + (f' (default: {default})' if default else ''),
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


def add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that training and testing share, named as mmseg users know them."""
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
