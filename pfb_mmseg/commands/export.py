"""Make of a checkpoint and its config what MMSegmentation or MMPretrain loads without pfb_mmseg.

The predictions stay the same, bit for bit. What is changed or left out is told; a model that needs
a part of pfb_mmseg to predict is refused.
"""

from __future__ import annotations

import argparse

from .arguments import ToolParser, add_config_options, check_checkpoint


def add_arguments(parser: ToolParser) -> None:
    about = 'checkpoint file, trained with PFB or without'
    parser.add_argument('checkpoint', help=about)
    parser.add_argument(
        'out', help='folder for both files, or a file that ends in .pth; the config goes beside it'
    )
    parser.add_argument(
        '--config',
        help='config file, or the name of one that comes with pfb_mmseg (default: the one that the '
        'checkpoint keeps)',
    )
    parser.add_argument('--overwrite', action='store_true', help='replace files that are there')
    add_config_options(parser)


def run(parser: ToolParser, args: argparse.Namespace) -> None:
    check_checkpoint(parser, args.checkpoint)
    if args.cfg_options and args.config is None:
        parser.error('--cfg-options change the config that --config names; name it')

    from ..convert.export import export
    from . import launch

    try:
        config = None if args.config is None else launch.named_config(parser, args)
        with launch.explain_refused_checkpoint():
            exported = export(args.checkpoint, args.out, config, args.overwrite)
    except (FileExistsError, ImportError, ValueError) as error:  # of custom_imports
        parser.error(str(error))
    for change in exported.changes:
        print(change)
    print(f'Checkpoint: {exported.checkpoint}   config: {exported.config}')
