"""Test a checkpoint, as MMSegmentation's tool does."""

from __future__ import annotations

import argparse

from .arguments import ToolParser, add_config, add_launch_arguments, check_checkpoint


def add_arguments(parser: ToolParser) -> None:
    add_config(parser)
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    parser.add_argument('--out', help='folder for the predicted label maps')
    parser.add_argument('--show', action='store_true', help='show the predictions in a window')
    parser.add_argument('--show-dir', help='folder for images with the predictions painted in')
    parser.add_argument(
        '--wait-time', type=float, default=2, help='seconds for which --show shows an image'
    )
    parser.add_argument('--tta', action='store_true', help='augment at test time: scales and flips')
    add_launch_arguments(parser)


def run(parser: ToolParser, args: argparse.Namespace) -> None:
    check_checkpoint(parser, args.checkpoint)
    from mmengine.runner import Runner

    from . import launch

    cfg = launch.load_config(parser, args)
    cfg.load_from = args.checkpoint
    if args.show or args.show_dir:
        hook = cfg.get('default_hooks', {}).get('visualization')
        if hook is None or cfg.get('visualizer') is None:
            parser.error(
                '--show and --show-dir need a visualizer and a hook that draws; add to the config '
                "visualizer=dict(type='SegLocalVisualizer', vis_backends=[dict("
                "type='LocalVisBackend')]) and "
                "default_hooks=dict(visualization=dict(type='SegVisualizationHook'))"
            )
        # Every image, as the fork draws them; OpenMMLab's hook would every 50th.
        hook.update(draw=True, interval=1)
        if args.show:
            hook.update(show=True, wait_time=args.wait_time)
        if args.show_dir:
            cfg.visualizer.save_dir = args.show_dir
    if args.tta:
        for name in ('tta_model', 'tta_pipeline'):
            if name not in cfg:
                parser.error(f'--tta needs {name} in the config; see those of this package')
        cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
        cfg.model = {**cfg.tta_model, 'module': cfg.model}
    if args.out:
        evaluators = cfg.test_evaluator
        for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
            evaluator['output_dir'] = args.out

    with launch.cpu_launch(cfg), launch.explain_refused_checkpoint():
        Runner.from_cfg(cfg).test()
