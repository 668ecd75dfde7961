"""Which models of the installed zoo train with PFB: a small step each, on noise, on the CPU."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import mmseg
import torch
from mmengine.config import Config
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg.utils import register_all_modules
from torch import Tensor, nn

from ..blocking import step_cost
from ..segmentors import PartialForwardBlocking
from ..segmentors.apply import apply_pfb

SEGMENTORS = ('CascadeEncoderDecoder', 'EncoderDecoder')

# A plain ViT of an eighth of its weights, with UPerHead behind it.
_SMALL_VIT = {
    'backbone.embed_dims': 192,
    'backbone.num_heads': 3,
    'neck.embed_dim': 192,
    'decode_head.in_channels': [192] * 4,
    'decode_head.channels': 32,
    'auxiliary_head.in_channels': 192,
}

# One small model for each family of backbones, and what makes it smaller still.
QUICK: dict[str, dict] = {
    'ocrnet/ocrnet_hr18s_4xb2-40k_cityscapes-512x1024.py': {},
    'beit/beit-base_upernet_8xb2-160k_ade20k-640x640.py': _SMALL_VIT,
    'bisenetv1/bisenetv1_r18-d32_4xb4-160k_cityscapes-1024x1024.py': {},
    'bisenetv2/bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024.py': {},
    'cgnet/cgnet_fcn_4xb4-60k_cityscapes-680x680.py': {},
    'ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py': {},
    'erfnet/erfnet_fcn_4xb4-160k_cityscapes-512x1024.py': {},
    'fastscnn/fast_scnn_8xb4-160k_cityscapes-512x1024.py': {},
    'hrnet/fcn_hr18s_4xb2-40k_cityscapes-512x1024.py': {},
    'icnet/icnet_r18-d8_4xb2-80k_cityscapes-832x832.py': {},
    'mae/mae-base_upernet_8xb2-amp-160k_ade20k-512x512.py': _SMALL_VIT,
    'segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512.py': {},
    'segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py': {},
    'mobilenet_v2/mobilenet-v2-d8_fcn_4xb2-80k_cityscapes-512x1024.py': {
        'decode_head.channels': 32
    },
    'mobilenet_v3/mobilenet-v3-d8-s_lraspp_4xb4-320k_cityscapes-512x1024.py': {},
    'twins/twins_pcpvt-s_fpn_fpnhead_8xb4-80k_ade20k-512x512.py': {},
    'pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py': {},
    'resnest/resnest_s101-d8_fcn_4xb2-80k_cityscapes-512x1024.py': {
        'backbone.depth': 50,
        'backbone.stem_channels': 32,
        'backbone.base_channels': 16,
        'decode_head.in_channels': 512,
        'auxiliary_head.in_channels': 256,
    },
    'fcn/fcn_r18b-d8_4xb2-80k_cityscapes-512x1024.py': {},
    'deeplabv3/deeplabv3_r18-d8_4xb2-80k_cityscapes-512x1024.py': {'decode_head.channels': 32},
    'stdc/stdc1_4xb12-80k_cityscapes-512x1024.py': {},
    'twins/twins_svt-s_fpn_fpnhead_8xb4-80k_ade20k-512x512.py': {},
    'swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py': {
        'decode_head.channels': 32
    },
    'unet/unet-s5-d16_fcn_4xb4-40k_chase-db1-128x128.py': {
        'backbone.base_channels': 16,
        'decode_head.in_channels': 16,
        'auxiliary_head.in_channels': 32,
    },
    'segmenter/segmenter_vit-s_fcn_8xb1-160k_ade20k-512x512.py': {},
}

_PRUNE_RATIO = 0.5
_NUM_CANDIDATES = 4
_NUM_KEPT = 2  # heads that normalise single pixels cannot train on fewer
_IMAGE_SIZE = 128
# LRASPPHead pools over 49x49 of a map that is an eighth of the image or less.
_IMAGE_SIZES = {'MobileNetV3': 512}
_PACKAGES = {'MaskFormerHead': 'mmdet', 'Mask2FormerHead': 'mmdet'}


@dataclass(frozen=True, order=True)
class Combination:
    """A segmentor with a backbone and decode heads, and the config that stands for it."""

    segmentor: str
    backbone: str
    head: str
    config: Path = field(compare=False)
    overrides: dict = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        return f'{self.segmentor}, {self.backbone}, {self.head}'


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


def zoo_root() -> Path:
    """Where the installed mmseg keeps its configs.

    Raises:
        FileNotFoundError: it came without them.
    """
    package = Path(mmseg.__path__[0])
    for root in (package / '.mim' / 'configs', package.parent / 'configs'):
        if root.is_dir():
            return root
    raise FileNotFoundError(f'the mmseg in {package} came without its model zoo (.mim/configs)')


def list_configs(root: Path) -> list[Path]:
    """The zoo's configs, without the parts that they inherit; r18 before r101."""

    def key(path: Path) -> list[str | int]:
        pieces = re.split(r'(\d+)', f'{path.parent.name}/{path.stem}')
        return [int(piece) if piece.isdigit() else piece for piece in pieces]

    return sorted((p for p in root.rglob('*.py') if '_base_' not in p.parts), key=key)


def quick_combinations(root: Path) -> list[Combination]:
    """One combination for each family of backbones, see ``QUICK``."""
    return [read_combination(root / path, overrides) for path, overrides in QUICK.items()]


def read_combination(path: Path, overrides: dict | None = None) -> Combination:
    """What a config combines.

    Args:
        overrides: dotted keys inside the config's ``model``, with other values.

    Raises:
        ImportError: the config imports a package that is not installed.
    """
    model = Config.fromfile(path).model
    heads = model.get('decode_head')
    heads = heads if isinstance(heads, (list, tuple)) else [heads]
    names = [_type_of(model), _type_of(model.get('backbone')), ' + '.join(map(_type_of, heads))]
    return Combination(*names, path, overrides or {})


def cover(combination: Combination) -> Coverage:
    """Try a plain step, then one with PFB, then one with PFB's ``single_pass``."""
    register_all_modules()
    torch.manual_seed(0)
    path = combination.config
    result = Coverage(
        combination.segmentor,
        combination.backbone,
        combination.head,
        f'{path.parent.name}/{path.name}',
    )
    missing = _PACKAGES.get(combination.head)
    if missing and find_spec(missing) is None:
        result.reason = f'{combination.head} needs {missing}'
        return result
    cfg = Config.fromfile(path)
    size = _shrink(cfg, combination.overrides)
    images, samples = _noise(size)
    try:
        model = MODELS.build(cfg.model)
        train_step(model, images[:_NUM_KEPT], samples[:_NUM_KEPT], _NUM_KEPT)
        result.plain = True
        del model
        gc.collect()

        apply_pfb(cfg, _PRUNE_RATIO)
        model = MODELS.build(cfg.model)
        _blocked_step(model, images, samples)
        result.pfb = True
        point = model.pfb.point
        result.block_after, result.channels = f'backbone.{point.name}', point.num_channels
        cost = step_cost(model, point, lambda image: model(image, mode='tensor'))
        result.behind = None if cost is None else cost.share_behind
        result.single_pass = _try_single_pass(model, images, samples)
    except Exception as error:  # whatever it is: that it goes wrong is the finding
        result.reason = _in_a_line(error)
    return result


def train_step(model: nn.Module, images: Tensor, samples: list, num_rows: int) -> None:
    """One forward and backward pass, and whether they did what they should.

    Args:
        num_rows: how many images every head must get to see.

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


def _try_single_pass(model: nn.Module, images: Tensor, samples: list) -> str:
    try:
        model.pfb = PartialForwardBlocking(model, prune_ratio=_PRUNE_RATIO, strategy='single_pass')
        model.pfb.prepare()
    except ValueError as refusal:
        if "Use strategy='two_pass'" in str(refusal):
            return 'refused'
        raise
    _blocked_step(model, images, samples)
    return 'yes'


def _blocked_step(model: nn.Module, images: Tensor, samples: list) -> None:
    """A step of a model whose estimator is seeded first, so that it prunes."""
    model.pfb.prepare()
    model.pfb.prepare()
    estimator = model.pfb.pruner.estimator
    estimator.update(torch.randn(estimator.num_centroids, estimator.dim))
    train_step(model, images, samples, _NUM_KEPT)
    log_density = model.pfb.selection.log_density
    _require(bool(log_density.isfinite().all()), f'the log densities are {log_density}')


def _shrink(cfg: Config, overrides: dict) -> int:
    """Make a config one whose model trains on noise on a CPU; returns the side of its images."""
    cfg.merge_from_dict({f'model.{key}': value for key, value in overrides.items()})
    cfg.model = _without_checkpoints(cfg.model)
    backbone = cfg.model.backbone
    size = _IMAGE_SIZES.get(_type_of(backbone), _IMAGE_SIZE)
    if 'img_size' in backbone:
        backbone.img_size = (size, size)
    return size


def _without_checkpoints(node: Any) -> Any:
    """A copy of a config that loads no weights and normalises within its own process."""
    if isinstance(node, (list, tuple)):
        return type(node)(map(_without_checkpoints, node))
    if not isinstance(node, dict):
        return node
    if _type_of(node) == 'SyncBN':
        node = {**node, 'type': 'BN'}
    return {
        key: _without_checkpoints(value)
        for key, value in node.items()
        if key != 'pretrained'
        and not (key == 'init_cfg' and isinstance(value, dict) and _type_of(value) == 'Pretrained')
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


def _heads(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name in ('decode_head', 'auxiliary_head'):
        head = getattr(model, name, None)
        if isinstance(head, nn.ModuleList):
            yield from ((f'{name}.{index}', entry) for index, entry in enumerate(head))
        elif head is not None:
            yield name, head


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


def _type_of(cfg: dict | None) -> str:
    kind = (cfg or {}).get('type', '-')
    return kind if isinstance(kind, str) else kind.__name__


def _in_a_line(error: Exception) -> str:
    text = ' '.join(f'{type(error).__name__}: {error}'.split())
    return text if len(text) <= 160 else f'{text[:157]}...'


def _yes(value: bool) -> str:
    return 'yes' if value else 'no'


def _percent(share: float | None) -> str:
    return 'unknown' if share is None else f'{share:.0%}'
