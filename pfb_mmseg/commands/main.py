"""`pfb`: the commands behind one name."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NoReturn

from .. import quiet
from .arguments import ToolParser

# What `pfb --help` says of each command; `pfb NAME` is the module NAME of this package.
COMMANDS = {
    'demo': 'train a small model on all images and with PFB, side by side; needs no data',
    'check': 'say what is wrong with the files of a data set',
    'train': 'train the model of a config, with PFB or without',
    'test': 'test a checkpoint',
    'report': 'show what a run with PFB skipped, as a page',
    'browse': 'rank a data set by rarity or by loss: what to label, which labels are wrong',
    'compare': 'set accuracy and cost of several methods side by side',
    'benchmark': 'measure what PFB saves on this machine',
    'export': 'make a checkpoint and a config that need MMSegmentation alone',
}


def read(argv: Sequence[str] | None = None) -> Callable[[], None]:
    """What a command line (of this process by default) asks for, to be called; help, mistakes and
    questions of a shell end here."""
    parser = ToolParser(
        prog='pfb',
        description='Partial Forward Blocking for MMSegmentation: train on the images of each '
        'batch that are worth it.',
        epilog='`pfb COMMAND --help` explains a command. Where a CONFIG is asked for, the name of '
        'one that comes with pfb_mmseg will do.',
    )
    parser.add_argument(
        '--version', action=_Versions, help='print everything that a bug report needs'
    )
    commands = parser.add_subparsers(
        title='commands', dest='command', metavar='COMMAND', required=True, parser_class=_Command
    )
    for name, about in COMMANDS.items():
        commands.add_parser(name, help=about).name = name
    # A shell asks how the line goes on.
    if '_ARGCOMPLETE' in os.environ and find_spec('argcomplete'):
        import argcomplete

        argcomplete.autocomplete(parser)
    argv = sys.argv[1:] if argv is None else argv
    return parser.parse_args(argv or ['--help']).run


def main() -> None:
    """Does what the command line asks for."""
    _run(read)


def call(name: str) -> None:
    """Does what the command line of a file in ``tools/`` asks for, which is one command alone."""
    _run(partial(read_alone, name))


def read_alone(name: str) -> Callable[[], None]:
    """What the command line of this process asks of one command."""
    module = import_module(f'.{name}', __package__)
    parser = ToolParser()
    _fill(parser, module)
    return partial(_do, module, parser, parser.parse_args())


def _run(reader: Callable[[], Callable[[], None]]) -> None:
    quiet.ignore_known_warnings()
    try:
        command = reader()
    except Exception:  # it had to import something that is missing or does not fit
        _import_all()
        raise
    command()


def _fill(parser: ToolParser, module: ModuleType) -> None:
    parser.description = module.__doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    with quiet.known_lines_held_back():  # the names of methods and tasks come with what they need
        module.add_arguments(parser)


def _do(module: ModuleType, parser: ToolParser, args: argparse.Namespace) -> None:
    if getattr(module, 'NEEDS_MMSEG', True):
        _import_all()
    module.run(parser, args)


def _import_all() -> None:
    """Says what is missing or does not fit."""
    with quiet.known_lines_held_back():
        from .. import apply_pfb  # noqa: F401


class _Command(ToolParser):
    """Imports its command when it is to read arguments: none pays for the others."""

    name: str

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        module = import_module(f'.{self.name}', __package__)
        if self.description is None:
            _fill(self, module)
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:  # the parser above would not know what they might mean
            self.error(f'unrecognized arguments: {" ".join(unknown)}')
        found.run = partial(_do, module, self, found)
        return found, []


class _Versions(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from ..report.versions import for_a_bug_report

        print(for_a_bug_report())
        sys.exit()
