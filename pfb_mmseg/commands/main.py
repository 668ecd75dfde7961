"""`pfb`: the commands behind one name."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any, NoReturn

from ..quiet import ignore_known_warnings
from .arguments import ToolParser

# What `pfb --help` says of each command; `pfb NAME` is the module NAME of this package.
COMMANDS = {
    'demo': 'train a small model on all images and with PFB, side by side; needs no data',
    'check': 'say what is wrong with the files of a data set',
    'train': 'train the model of a config, with PFB or without',
    'test': 'test a checkpoint',
    'report': 'show what a run with PFB skipped, as a page',
    'browse': 'rank a data set by rarity or by loss: what to label, what to look at',
    'compare': 'set accuracy and cost of several methods side by side',
    'benchmark': 'measure what PFB saves on this machine',
    'export': 'make a checkpoint and a config that need MMSegmentation alone',
}


def read(argv: Sequence[str]) -> Callable[[], None]:
    """What a command line asks for, to be called; help and mistakes end here.

    Raises:
        ImportError: the command needs MMSegmentation, which is not installed.
    """
    parser = ToolParser(
        prog='pfb',
        usage='pfb [--help] [--version] COMMAND ...',
        description='Partial Forward Blocking for MMSegmentation: train on the images of each '
        'batch that are worth it.',
        epilog='commands:\n'
        + '\n'.join(f'  {name:<11}{about}' for name, about in COMMANDS.items())
        + '\n\n`pfb COMMAND --help` explains a command. Where a CONFIG is asked for, the name of\n'
        'one that comes with pfb_mmseg will do.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--version', action=_Versions, help='print everything that a bug report needs'
    )
    parser.add_argument('command', choices=COMMANDS, metavar='COMMAND', help=argparse.SUPPRESS)
    parser.add_argument('arguments', nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    found = parser.parse_args(argv or ['--help'])

    from .. import apply_pfb  # noqa: F401  says what is missing

    module = import_module(f'.{found.command}', __package__)
    parser = ToolParser(
        prog=f'pfb {found.command}',
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    return partial(module.run, parser, parser.parse_args(found.arguments))


def main(*command: str) -> None:
    """Does what the command line of this process asks for; a file in ``tools/`` names the command
    for which it stands."""
    ignore_known_warnings()
    read([*command, *sys.argv[1:]])()


class _Versions(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from ..report.versions import for_a_bug_report

        print(for_a_bug_report())
        sys.exit()
