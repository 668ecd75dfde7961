"""Try PFB on every model of the installed zoo: ``python -m benchmarks.coverage``.

A small step of each combination of model, backbone and head, on noise, on the CPU; no data are
needed. Prints a line for each. The exit status is 1 if PFB fails on a model that trains without it.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from benchmarks import zoo
from benchmarks.zoo import Combination, type_name
from pfb_mmseg.blocking import step_cost
from pfb_mmseg.commands.arguments import ToolParser
from pfb_mmseg.convert.apply import apply_pfb
from pfb_mmseg.models import PartialForwardBlocking

_PRUNE_RATIO = 0.5
CRITERIA = {
    'hard': dict(type='hard'),
    # One batch seeds all centroids.
    'rare': dict(type='rare', estimator=dict(num_centroids=4)),
}
_NUM_CANDIDATES = 4
_MOST_STEPS = 20  # on all images, before one must be blocked
_NUM_KEPT = 2  # heads that normalise single pixels cannot train on fewer
_IMAGE_SIZE = 128
# LRASPPHead pools over 49x49 of a map that is an eighth of the image or less.
_IMAGE_SIZES = {'MobileNetV3': 512}
# Classifiers are tried at the size that they were made for.
_CLASSIFIER_SIZE = 224
_CLASSIFIER_SIZES = {'InceptionV3': 299, 'LeNet5': 32, 'ResNet_CIFAR': 32}
_OF_MMDETECTION = ('MaskFormerHead', 'Mask2FormerHead')


@dataclass
class Coverage:
    """What a combination can do.

    Attributes:
        config: its path inside the zoo.
        plain, pfb: whether a plain step trains, and one with PFB (``two_pass``).
        single_pass: ``'yes'``, ``'refused'`` with a sentence, or ``'no'``.
        block_after: the blocking point that was chosen.
        channels: how many the feature map has there.
        behind: share of the forward pass that lies behind it; None if unknown.
        reason: what went wrong first; empty if nothing did.
    """

    segmentor: str
    backbone: str
    head: str
    config: str
    plain: bool = False
    pfb: bool = False
    single_pass: str = 'no'
    block_after: str = ''
    channels: int = 0
    behind: float | None = None
    reason: str = ''


def several_processes(jobs: int) -> ProcessPoolExecutor:
    """Quiet processes that share the cores between them."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    return ProcessPoolExecutor(jobs, get_context('spawn'), _quieten, (threads,))


def find_all(
    pool: ProcessPoolExecutor, package: str = 'mmseg'
) -> tuple[list[Combination], dict[str, int]]:
    """Every combination of a zoo that PFB is for, and how many configs are left out why."""
    paths = zoo.list_configs(zoo.zoo_root(package))
    return zoo.find_combinations(pool.map(zoo.try_to_read, paths, chunksize=8))


def cover(combination: Combination, criterion: str = 'rare') -> Coverage:
    """Try a plain step, then one with PFB in two passes, then one in a single pass.

    Args:
        combination: what is tried.
        criterion: of :data:`CRITERIA`, which decides.
    """
    classifier = combination.segmentor in zoo.CLASSIFIERS
    init_default_scope('mmpretrain' if classifier else 'mmseg')
    torch.manual_seed(0)
    path = combination.config
    result = Coverage(
        combination.segmentor,
        combination.backbone,
        combination.head,
        f'{path.parent.name}/{path.name}',
    )
    if combination.head in _OF_MMDETECTION:
        missing = [name for name in ('mmdet', 'mmcv._ext') if find_spec(name) is None]
        if missing:
            result.reason = f'{combination.head} needs {" and ".join(missing)}'
            return result
    cfg = Config.fromfile(path)
    size = _shrink(cfg, combination.overrides, classifier)
    try:
        images, samples = _labelled_noise(size, cfg.model) if classifier else _noise(size)
        model = MODELS.build(cfg.model)
        train_step(model, images[:_NUM_KEPT], samples[:_NUM_KEPT], _NUM_KEPT)
        result.plain = True
        del model
        gc.collect()

        apply_pfb(cfg, _PRUNE_RATIO)
        cfg.model.pfb.update(criterion=CRITERIA[criterion], strategy='two_pass')
        model = MODELS.build(cfg.model)
        _blocked_step(model, images, samples)
        result.pfb = True
        point = model.pfb.point
        result.block_after, result.channels = point.path, point.num_channels
        cost = step_cost(model, point, model.pfb.task.forward)
        result.behind = None if cost is None else cost.share_behind
        result.single_pass = _try_single_pass(model, images, samples, CRITERIA[criterion])
    except Exception as error:  # whatever it is: that it goes wrong is the finding
        result.reason = _in_a_line(error)
    return result


def train_step(model: nn.Module, images: Tensor, samples: list, num_rows: int) -> None:
    """One forward and backward pass, and whether they did what they should.

    Args:
        num_rows: how many images every head must get to see, but the one that is the early exit,
            which sees all.

    Raises:
        AssertionError: a head got another number, the loss is not finite, or no gradient reaches
            the first convolution.
    """
    model.train()
    model.zero_grad()
    with ExitStack() as stack:
        # Heads call their own forward, past any hook.
        spies = {
            name: stack.enter_context(mock.patch.object(head, 'forward', wraps=head.forward))
            for name, head in _heads(model)
            if head is not _exit_head(model)
        }
        loss, _ = model.parse_losses(model.loss(images, samples))
        rows = {name: _rows(spy.call_args_list) for name, spy in spies.items()}
    _require(all(seen == {num_rows} for seen in rows.values()), f'the heads saw {rows} images')
    _require(bool(loss.isfinite()), f'the loss is {loss.item()}')
    loss.backward()
    stem = next(
        module.weight
        for module in model.backbone.modules()
        if isinstance(module, nn.Conv2d) and module.weight.requires_grad
    )
    _require(stem.grad is not None and bool(stem.grad.any()), 'no gradient reaches the stem')


def to_markdown(results: Sequence[Coverage]) -> str:
    """A table, one line for each combination."""
    lines = [
        '| segmentor | backbone | head | plain step | PFB step | blocked after '
        '| of the forward pass behind it | `single_pass` | reason |',
        '|---|---|---|---|---|---|---|---|---|',
    ]
    for r in results:
        cells = [
            r.segmentor,
            r.backbone,
            r.head,
            _yes(r.plain),
            _yes(r.pfb),
            f'`{r.block_after}`' if r.block_after else '',
            _percent(r.behind) if r.pfb else '',
            r.single_pass if r.pfb else '',
            r.reason.replace('|', '\\|'),
        ]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def to_line(r: Coverage) -> str:
    """The same as a sentence."""
    line = f'{r.segmentor}, {r.backbone}, {r.head}: plain step {_yes(r.plain)}'
    line += f', PFB step {_yes(r.pfb)}'
    if r.pfb:
        line += f' behind {r.block_after} ({_percent(r.behind)} of the forward pass lies behind it)'
        line += f', single_pass {r.single_pass}'
    return f'{line}. {r.reason}'.strip()


def summary(results: Sequence[Coverage]) -> str:
    """The totals in a line."""
    plain = sum(r.plain for r in results)
    blocked = sum(r.pfb for r in results)
    single = sum(r.single_pass == 'yes' for r in results)
    return (
        f'Combinations: {len(results)}. Plain step: {plain}, PFB step: {blocked}, '
        f'single_pass as well: {single}.'
    )


def _try_single_pass(model: nn.Module, images: Tensor, samples: list, criterion: dict) -> str:
    try:
        model.pfb = PartialForwardBlocking(
            model, prune_ratio=_PRUNE_RATIO, criterion=criterion, strategy='single_pass'
        )
        model.pfb.prepare()
    except ValueError as refusal:
        if "Use strategy='two_pass'" in str(refusal):
            return 'refused'
        raise
    _blocked_step(model, images, samples)
    return 'yes'


def _blocked_step(model: nn.Module, images: Tensor, samples: list) -> None:
    """Steps on all images until what chooses has learnt enough, then a blocked one."""
    model.train()
    model.pfb.prepare()
    for _ in range(_MOST_STEPS):
        if model.pfb.ready:
            break
        model.loss(images, samples)
    train_step(model, images, samples, _NUM_KEPT)


def _shrink(cfg: Config, overrides: dict, classifier: bool) -> int:
    """Make a config one whose model trains on noise on a CPU; returns the side of its images."""
    cfg.merge_from_dict({f'model.{key}': value for key, value in overrides.items()})
    cfg.model = _without_checkpoints(cfg.model)
    backbone = cfg.model.backbone
    if classifier:
        cfg.model.pop('train_cfg', None)  # mixes labels in the data preprocessor, which is left out
        size = backbone.get('img_size', _CLASSIFIER_SIZE)
        return _CLASSIFIER_SIZES.get(type_name(backbone), size)
    size = _IMAGE_SIZES.get(type_name(backbone), _IMAGE_SIZE)
    if 'img_size' in backbone:
        backbone.img_size = (size, size)
    return size


def _without_checkpoints(node: Any) -> Any:
    """A copy of a config that loads no weights and normalises within its own process."""
    if isinstance(node, (list, tuple)):
        return type(node)(map(_without_checkpoints, node))
    if not isinstance(node, dict):
        return node
    if type_name(node) == 'SyncBN':
        node = {**node, 'type': 'BN'}
    return {
        key: _without_checkpoints(value)
        for key, value in node.items()
        if key != 'pretrained'
        and not (key == 'init_cfg' and isinstance(value, dict) and type_name(value) == 'Pretrained')
    }


def _noise(size: int) -> tuple[Tensor, list[SegDataSample]]:
    """Images (N, 3, size, size) and samples with every kind of label that the zoo's heads read."""
    generator = torch.Generator().manual_seed(0)

    def labels() -> PixelData:
        return PixelData(data=torch.randint(2, (1, size, size), generator=generator))

    shape = (size, size)
    samples = [
        SegDataSample(
            metainfo=dict(img_path=f'{index}.png', img_shape=shape, ori_shape=shape),
            gt_sem_seg=labels(),
            gt_edge_map=labels(),
        )
        for index in range(_NUM_CANDIDATES)
    ]
    return torch.rand(_NUM_CANDIDATES, 3, size, size, generator=generator), samples


def _labelled_noise(size: int, model: dict) -> tuple[Tensor, list]:
    """Images (N, C, size, size), as the backbone takes them, each of a class of its own."""
    from mmpretrain.structures import DataSample

    channels = {'LeNet5': 1}.get(type_name(model['backbone']), 3)
    head = model['head']
    num_classes, loss = head.get('num_classes', _NUM_CANDIDATES), head.get('loss') or {}
    # Some heads read classes, and others shares of them.
    soft = 'Label' in type_name(loss) or loss.get('use_soft')
    samples = []
    for index in range(_NUM_CANDIDATES):
        sample = DataSample(metainfo=dict(img_path=f'{index}.png')).set_gt_label(index)
        if soft:
            sample.set_gt_score(torch.eye(num_classes)[index])
        samples.append(sample)
    generator = torch.Generator().manual_seed(0)
    return torch.rand(_NUM_CANDIDATES, channels, size, size, generator=generator), samples


def _heads(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name in ('decode_head', 'auxiliary_head', 'head'):
        head = getattr(model, name, None)
        if isinstance(head, nn.ModuleList):
            yield from ((f'{name}.{index}', entry) for index, entry in enumerate(head))
        elif head is not None:
            yield name, head


def _exit_head(model: nn.Module) -> nn.Module | None:
    """The auxiliary head that is the early exit of PFB."""
    index = model.pfb.exit.head_index if hasattr(model, 'pfb') and model.pfb.exit else None
    if index is None:
        return None
    heads = model.auxiliary_head
    return heads[index] if isinstance(heads, nn.ModuleList) else heads


def _rows(calls: Any) -> set[int]:
    def tensors(value: Any) -> Iterator[Tensor]:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            for item in value:
                yield from tensors(item)

    return {len(tensor) for call in calls for tensor in tensors(call.args)}


def _require(holds: bool, complaint: str) -> None:
    if not holds:
        raise AssertionError(complaint)


def _in_a_line(error: Exception) -> str:
    text = ' '.join(f'{type(error).__name__}: {error}'.split())
    return text if len(text) <= 160 else f'{text[:157]}...'


def _yes(value: bool) -> str:
    return 'yes' if value else 'no'


def _percent(share: float | None) -> str:
    return 'unknown' if share is None else f'{share:.0%}'


def _quieten(threads: int) -> None:
    torch.set_num_threads(threads)
    warnings.simplefilter('ignore')
    logging.disable(logging.WARNING)


def main(argv: Sequence[str] | None = None) -> None:
    parser = ToolParser('python -m benchmarks.coverage', description=__doc__)
    about = 'one small model for each family of backbones'
    parser.add_argument('--quick', action='store_true', help=about)
    parser.add_argument('--zoo', choices=zoo.QUICK_OF, default='mmseg')
    parser.add_argument('--criterion', choices=CRITERIA, default='rare')
    parser.add_argument('--only', metavar='NAME', help='combinations with this in their name')
    parser.add_argument('--out', type=Path, help='write the table to this file, .md or .json')
    parser.add_argument('--jobs', type=int, default=1, help='models tried at the same time')
    args = parser.parse_args(argv)
    if args.out and args.out.suffix not in ('.md', '.json'):
        parser.error(f'--out {args.out}: expected a file that ends in .md or .json')
    with several_processes(args.jobs) as pool:
        if args.quick:
            combinations = zoo.quick_combinations(zoo.zoo_root(args.zoo), args.zoo)
        else:
            combinations, left_out = find_all(pool, args.zoo)
            for reason, count in left_out.items():
                print(f'Left out: {count} config(s), {reason}')
        combinations = [c for c in combinations if args.only is None or args.only in str(c)]
        if not combinations:
            parser.error(f'--only {args.only}: no combination of the zoo has this in its name')
        results = []
        tried = [pool.submit(cover, one, args.criterion) for one in combinations]
        for future in as_completed(tried):
            results.append(future.result())
            print(f'{len(results)}/{len(tried)} {to_line(results[-1])}', flush=True)
    results.sort(key=lambda r: (r.segmentor, r.backbone, r.head))
    print(summary(results))
    if args.out:
        as_json = json.dumps([asdict(result) for result in results], indent=1)
        text = to_markdown(results) if args.out.suffix == '.md' else as_json
        args.out.write_text(text + '\n')
    sys.exit(any(result.plain and not result.pfb for result in results))


if __name__ == '__main__':
    main()
