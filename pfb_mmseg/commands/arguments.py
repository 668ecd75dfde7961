"""How arguments are read: what the command lines have in common."""

from __future__ import annotations

import argparse
import difflib
import re
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


def seed_number(text: str) -> int:
    """The type of an argument that is a seed."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f'{text!r}: expected an integer in [0, 2**32)')
    return int(text)


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


def check_counts(parser: argparse.ArgumentParser, args: argparse.Namespace, *names: str) -> None:
    """Ends in an error where an option is less than 1, or a seed of ``args.seeds`` stands twice."""
    for name in names:
        value = getattr(args, name)
        if value < 1:
            parser.error(f'--{name} {value}: expected an integer >= 1')
    if len(set(args.seeds)) < len(args.seeds):
        parser.error(f'--seeds {" ".join(map(str, args.seeds))}: a seed stands there twice')


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
