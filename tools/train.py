"""Trains the model of a config: `python tools/train.py CONFIG`, as MMSegmentation's tool does.

With --prune-ratio, PFB is turned on for a config that knows nothing of it.
"""

from pfb_mmseg import apply_pfb  # comes first: it says what is missing or does not fit

# isort: split
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import Runner
from mmseg.registry import RUNNERS

from _cli import (
    ToolParser,
    add_common_arguments,
    explain_refused_checkpoint,
    load_config,
    prepare_cpu_launch,
    say,
)


def main() -> None:
    parser = ToolParser(description='Train a segmentor.')
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--prune-ratio',
        type=float,
        metavar='P',
        help='train with PFB and prune this share of every batch, in [0, 1)',
    )
    parser.add_argument(
        '--resume', action='store_true', help='go on from the latest checkpoint in the work dir'
    )
    parser.add_argument('--amp', action='store_true', help='train with automatic mixed precision')
    add_common_arguments(parser)
    args = parser.parse_args()

    cfg = load_config(parser, args)
    try:
        if args.prune_ratio is not None:
            for change in apply_pfb(cfg, args.prune_ratio):
                say(f'--prune-ratio: {change}')
        if args.amp:
            turn_on_amp(cfg)
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    cfg.resume = args.resume or cfg.get('resume', False)

    prepare_cpu_launch(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    with explain_refused_checkpoint():
        runner.train()


def turn_on_amp(cfg: Config) -> None:
    """Makes the optimizer wrapper one with mixed precision and dynamic loss scaling."""
    wrapper = cfg.optim_wrapper.get('type', 'OptimWrapper')
    name = wrapper if isinstance(wrapper, str) else wrapper.__name__
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


if __name__ == '__main__':
    main()
