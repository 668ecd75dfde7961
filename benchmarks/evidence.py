"""What each option of the density estimate does: ``python -m benchmarks.evidence``.

The plain network of a config is trained once per seed, and the vectors that a scoring pass would
hand to the estimator are kept for every iteration. They are replayed through BatchPruner for one
option changed at a time. A second call only replays.
"""

from __future__ import annotations

import copy
import inspect
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config, DictAction
from mmengine.hooks import Hook
from mmengine.runner import Runner
from rich.progress import Progress
from torch import Tensor

from pfb_mmseg.blocking import BlockingPoint, default_stage, shrink
from pfb_mmseg.commands.arguments import ToolParser, add_config_options, seed_number
from pfb_mmseg.commands.launch import named_config
from pfb_mmseg.core import AdaptiveDensityEstimator, BatchPruner, pool_features
from pfb_mmseg.core.criteria import Rare
from pfb_mmseg.core.selection import keep_highest
from pfb_mmseg.demo import PFBDemoDataset

CONFIG = 'fcn_r18-d8_1xb16-300i_demo-64x64'
PRUNE_RATIO = 0.5
BEGIN = 0.025  # of the run, as PFBHook's default
AHEAD = 10  # iterations whose images are held out
EVERY = 5  # iterations between two looks ahead
WINDOW = 200  # iterations within which a centroid should receive a sample

# Everything that is tried; what equals the default is the first row of the table.
OPTIONS: dict[str, list] = {
    'momentum': [0.001, 0.01, 0.1, 0.5],
    'revive_after': [None, 50, 100, 200],
    'bandwidth': ['silverman', 'scott', 'identity'],
    'weighted': [True, False],
    'num_centroids': [16, 64, 256],
    'dim': [32, 64, 128],
    'exploration': [0, 0.001, 0.01, 0.1],
    'score_scale': [0.5, 1.0],
}
# The scoring passes that are recorded: score_scale, and their names in a file.
PASSES = {1.0: 'full_size', 0.5: 'half_size'}
COLUMNS = {
    'held_out': 'held-out log density',
    'alive': 'centroids alive (%)',
    'evenness': 'evenness',
    'largest': 'largest weight (%)',
    'ranked_rare': 'rare kinds, by rank',
    'rare': 'rare kinds kept',
    'ranking': 'as ranked (%)',
    'default': 'as default, by rank (%)',
}


class Stream(NamedTuple):
    """What the scoring passes of one run saw.

    Attributes:
        features: for each name of ``PASSES``, (T, N, C) float32.
        kinds: (T, N) names of the kinds of scene.
    """

    features: dict[str, Tensor]
    kinds: np.ndarray


class RecordFeatures(Hook):
    """Scores every batch as ``two_pass`` would, just before the network is trained on it."""

    def __init__(self, progress: Progress, name: str) -> None:
        self.progress = progress
        self.name = name
        self.features: dict[str, list[Tensor]] = {name: [] for name in PASSES.values()}
        self.kinds: list[list[str]] = []

    def before_train(self, runner: Runner) -> None:
        self.task = self.progress.add_task(self.name, total=runner.max_iters)
        stage = default_stage(runner.model.backbone, [])
        self.point = BlockingPoint(runner.model, stage)
        self.point.prepare()
        self.point.encoder.register_forward_pre_hook(self._score)

    def _score(self, encoder: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        if not encoder.training or self.point.scoring:  # validation, or the call of a scoring pass
            return
        for scale, name in PASSES.items():
            images = args[0] if scale == 1 else shrink(args[0], scale)
            self.features[name].append(self.point.candidates(images).features().cpu())

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self.kinds.append([kind_of(sample.img_path) for sample in data_batch['data_samples']])
        self.progress.advance(self.task)


def kind_of(path: str) -> str:
    """The kind of a demo scene; for files, what stands before the first underscore (a sequence)."""
    if path.startswith('demo/'):
        return PFBDemoDataset.kind_of(path)
    return Path(path).stem.split('_')[0]


def measure(
    cfg: Config,
    seeds: Sequence[int],
    work_dir: Path,
    progress: Progress,
    names: Sequence[str] = tuple(OPTIONS),
    fixed: Mapping[str, Any] | None = None,
) -> str:
    """The table of what each option does, in Markdown.

    Args:
        cfg: of a plain segmentor.
        seeds: of the runs that are replayed.
        work_dir: where their streams are kept; those that are there are not made again.
        progress: shows the training and the replays.
        names: of the options that are tried, see :data:`OPTIONS`.
        fixed: options that hold in every row.
    """
    streams = [load_stream(cfg, seed, work_dir, progress) for seed in seeds]
    variants = list_variants(names, fixed or {}, streams[0].features['full_size'].shape[2])
    task = progress.add_task('Replaying', total=len(variants) * len(streams))
    results = []
    for options in variants.values():
        runs = []
        for stream in streams:
            runs.append(replay(stream, options))
            progress.advance(task)
        defaults = results[0] if results else runs
        for run, default in zip(runs, defaults, strict=True):
            both = run['lowest'] & default['lowest']
            run['default'] = 100 * both.sum() / default['lowest'].sum()
        results.append(runs)
    return format_table(list(variants), results)


def load_stream(cfg: Config, seed: int, work_dir: Path, progress: Progress) -> Stream:
    """The stream of one seed; the network is trained unless that was done with this config."""
    path = work_dir / f'stream_{seed}.npz'
    if path.is_file():
        with np.load(path, allow_pickle=False) as stored:
            if str(stored['config']) == cfg.pretty_text:
                features = {name: torch.from_numpy(stored[name]) for name in PASSES.values()}
                return Stream(features, stored['kinds'])
    stream = record(cfg, seed, work_dir, progress)
    arrays = {name: vectors.numpy() for name, vectors in stream.features.items()}
    np.savez(path, config=cfg.pretty_text, kinds=stream.kinds, **arrays)
    return stream


def record(cfg: Config, seed: int, work_dir: Path, progress: Progress) -> Stream:
    """Train the plain network and keep what the scoring passes see."""
    cfg = copy.deepcopy(cfg)
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = f'evidence_{seed}_{time.time_ns()}'
    cfg.randomness = dict(seed=seed)
    cfg.log_level = 'WARNING'
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.test_dataloader = cfg.test_cfg = cfg.test_evaluator = None
    cfg.default_hooks.checkpoint = None
    runner = Runner.from_cfg(cfg)
    recorder = RecordFeatures(progress, f'Training, seed {seed}')
    runner.register_hook(recorder)
    runner.train()
    features = {name: torch.stack(vectors) for name, vectors in recorder.features.items()}
    return Stream(features, np.array(recorder.kinds))


def list_variants(names: Sequence[str], fixed: Mapping[str, Any], max_dim: int) -> dict[str, dict]:
    """The default and every option changed alone: what to print -> what to set.

    Args:
        names: of the options to change.
        fixed: options that hold for all of them, the default too.
        max_dim: number of channels there are.
    """
    defaults: dict[str, Any] = {'score_scale': 1.0}
    for owner in (AdaptiveDensityEstimator, Rare):
        defaults |= {n: p.default for n, p in inspect.signature(owner).parameters.items()}
    variants = {'default': dict(fixed)}
    for name in names:
        for value in OPTIONS[name]:
            if value != defaults[name] and not (name == 'dim' and value > max_dim):
                variants[f'{name}={value!r}'] = {**fixed, name: value}
    return variants


def replay(stream: Stream, options: dict) -> dict[str, Any]:
    """Run BatchPruner over a stream.

    Args:
        stream: what it sees.
        options: of the estimator, ``exploration``, or ``score_scale``; the rest is default.

    Returns:
        A number for each of ``COLUMNS`` but the last, NaN for what could not be measured in so
        short a run; and ``lowest``, (T, N) bool: the images of lowest density.
    """
    options = dict(options)
    features = stream.features[PASSES[options.pop('score_scale', 1.0)]]
    exploration = {k: options.pop(k) for k in ('exploration',) if k in options}
    estimator = AdaptiveDensityEstimator(**options)
    pruner = BatchPruner(
        PRUNE_RATIO, criterion=dict(type='rare', estimator=estimator, **exploration)
    )
    begin = round(BEGIN * len(features))
    held_out, alive, ranking, seeded = [], [], [], None
    kept = np.zeros(stream.kinds.shape, dtype=bool)
    lowest = kept.copy()
    for t in range(begin, len(features)):
        selection = pruner(features[t])
        if selection.score is None:
            continue
        seeded = t if seeded is None else seeded
        kept[t, selection.indices] = True
        lowest[t, keep_highest(-selection.score, len(selection.indices))] = True
        ranking.append((kept[t] & lowest[t]).sum() / kept[t].sum())
        if t - seeded >= WINDOW:
            alive.append(estimator.num_active(WINDOW).item() / estimator.num_centroids)
        if t % EVERY == 0 and t + AHEAD < len(features):
            rows = pool_features(features[t + 1 : t + 1 + AHEAD].flatten(0, 1), estimator.dim)
            held_out.append(advantage(estimator, rows))
    if seeded is None:
        return {**dict.fromkeys(COLUMNS, float('nan')), 'lowest': lowest}
    weights = estimator.weights
    entropy = torch.special.entr(weights).sum().item()
    return {
        'held_out': mean(held_out),
        'alive': 100 * min(alive, default=float('nan')),
        'evenness': entropy / np.log(estimator.num_centroids),
        'largest': 100 * weights.max().item(),
        'ranked_rare': rare_over_common(stream.kinds[seeded:], lowest[seeded:]),
        'rare': rare_over_common(stream.kinds[seeded:], kept[seeded:]),
        'ranking': 100 * mean(ranking),
        'lowest': lowest,
    }


def advantage(estimator: AdaptiveDensityEstimator, rows: Tensor) -> float:
    """Mean log density of rows above that of the one Gaussian that fits them best.

    Args:
        estimator: its density is scaled so that it integrates to one.
        rows: (M, D). The Gaussian has their own mean and variances, so the number does not depend
            on the unit of a channel, and may be compared between lengths of the representation.

    Returns:
        Nats per dimension; higher is better, and 0 is as good as the Gaussian.
    """
    log_density = estimator.log_density(rows).double().mean()
    if estimator.weighted:  # Eq. 4 divides by N_C, although the weights of Eq. 9 sum to one
        log_density = log_density + np.log(estimator.num_centroids)
    sigma = rows.double().std(dim=0, correction=0)
    sigma = torch.where(sigma > 0, sigma, sigma.mean())
    gaussian = -(0.5 * np.log(2 * np.pi * np.e) + sigma.log()).sum()
    return ((log_density - gaussian) / estimator.dim).item()


def rare_over_common(kinds: np.ndarray, kept: np.ndarray) -> float:
    """Kept rate of the rarer half of the kinds over that of the commonest kind."""
    names, counts = np.unique(kinds, return_counts=True)
    names = names[counts.argsort()]
    common = kept[kinds == names[-1]]
    rare = kept[np.isin(kinds, names[: len(names) // 2])]
    return rare.mean() / common.mean() if len(rare) and common.any() else float('nan')


def mean(values: list[float]) -> float:
    return statistics.fmean(values) if values else float('nan')


def format_table(names: list[str], results: list[list[dict[str, float]]]) -> str:
    """Markdown, with mean ± standard deviation over the seeds.

    Bold, with three seeds or more: differs from the default in the same direction for every seed,
    on average by more than twice the standard deviation of that difference.
    """
    lines = [
        '| option | ' + ' | '.join(COLUMNS.values()) + ' |',
        '|---' * (len(COLUMNS) + 1) + '|',
    ]
    for name, runs in zip(names, results, strict=True):
        cells = [f'`{name}`']
        for column in COLUMNS:
            values = np.array([run[column] for run in runs])
            change = values - np.array([run[column] for run in results[0]])
            digits = 1 if '(%)' in COLUMNS[column] else 2
            cell = f'{values.mean():.{digits}f} ± {values.std():.{digits}f}'
            same_sign = (change > 0).all() or (change < 0).all()
            if np.isnan(values).any():
                cell = '–'
            elif len(runs) > 2 and same_sign and abs(change.mean()) > 2 * change.std():
                cell = f'**{cell}**'
            cells.append(cell)
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines) + '\n'


def main(argv: Sequence[str] | None = None) -> None:
    parser = ToolParser('python -m benchmarks.evidence', description=__doc__)
    about = 'config file of a plain segmentor (default: %(default)s)'
    parser.add_argument('config', nargs='?', default=CONFIG, help=about)
    parser.add_argument('--seeds', type=seed_number, nargs='+', default=[0, 1, 2])
    parser.add_argument('--work-dir', help='folder for streams and table')
    add_config_options(parser)
    parser.add_argument('--vary', nargs='+', choices=OPTIONS, default=list(OPTIONS))
    parser.add_argument(
        '--fix',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='options that hold in every row, e.g. exploration=0',
    )
    args = parser.parse_args(argv)
    cfg = named_config(parser, args)
    work_dir = Path(args.work_dir or Path('work_dirs/evidence', Path(cfg.filename).stem))
    with Progress() as progress:
        table = measure(cfg, args.seeds, work_dir, progress, args.vary, args.fix)
    (work_dir / 'evidence.md').write_text(table)
    print(table)


if __name__ == '__main__':
    main()
