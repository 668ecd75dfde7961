"""Tests a checkpoint: `python tools/test.py CONFIG CHECKPOINT`, as MMSegmentation's tool does."""

import argparse
from pathlib import Path

import pfb_mmseg  # noqa: F401  comes first: it says what is missing or does not fit

# isort: split
from mmengine.config import Config
from mmengine.runner import Runner

from _cli import (
    ToolParser,
    add_common_arguments,
    explain_refused_checkpoint,
    load_config,
    prepare_cpu_launch,
)


def main() -> None:
    parser = ToolParser(description='Test a segmentor.')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    parser.add_argument('--out', help='folder for the predicted label maps')
    parser.add_argument('--show', action='store_true', help='show the predictions in a window')
    parser.add_argument('--show-dir', help='folder for images with the predictions painted in')
    parser.add_argument(
        '--wait-time', type=float, default=2, help='seconds for which --show shows an image'
    )
    parser.add_argument('--tta', action='store_true', help='augment at test time: scales and flips')
    add_common_arguments(parser)
    args = parser.parse_args()
    if '://' not in args.checkpoint and not Path(args.checkpoint).is_file():
        parser.error(f'checkpoint {args.checkpoint!r} is not a file')

    cfg = load_config(parser, args)
    cfg.load_from = args.checkpoint
    try:
        if args.show or args.show_dir:
            turn_on_drawing(cfg, args)
        if args.tta:
            turn_on_tta(cfg)
    except ValueError as error:
        parser.error(str(error))
    if args.out:
        evaluators = cfg.test_evaluator
        for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
            evaluator['output_dir'] = args.out

    prepare_cpu_launch(cfg)
    with explain_refused_checkpoint():
        Runner.from_cfg(cfg).test()


def turn_on_drawing(cfg: Config, args: argparse.Namespace) -> None:
    """Lets the visualization hook draw, to the screen, to a folder, or both."""
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None or cfg.get('visualizer') is None:
        raise ValueError(
            '--show and --show-dir need a visualizer and a hook that draws, but the config lacks '
            "them; add visualizer=dict(type='SegLocalVisualizer', vis_backends=[dict("
            "type='LocalVisBackend')], name='visualizer') and "
            "default_hooks=dict(visualization=dict(type='SegVisualizationHook'))"
        )
    hook.draw = True
    hook.interval = 1  # every image, as the fork draws them; OpenMMLab's hook would every 50th
    if args.show:
        hook.show = True
        hook.wait_time = args.wait_time
    if args.show_dir:
        cfg.visualizer.save_dir = args.show_dir


def turn_on_tta(cfg: Config) -> None:
    """Wraps the model and swaps the test pipeline, as the config's ``tta_*`` entries say."""
    for name in ('tta_model', 'tta_pipeline'):
        if name not in cfg:
            raise ValueError(
                f'--tta needs {name} in the config, which lacks it; the configs in this repository '
                'show how it looks'
            )
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.model = {**cfg.tta_model, 'module': cfg.model}


if __name__ == '__main__':
    main()
