"""What the model zoos of the installed packages hold, by model, backbone and head."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from mmengine.config import Config

SEGMENTORS = ('CascadeEncoderDecoder', 'EncoderDecoder')
CLASSIFIERS = ('ImageClassifier',)

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
# The same of MMPretrain's zoo.
QUICK_CLASSIFIERS: dict[str, dict] = {
    'convnext/convnext-tiny_32xb128_in1k.py': {'backbone.arch': 'atto', 'head.in_channels': 320},
    'deit/deit-tiny_4xb256_in1k.py': {},
    'efficientnet/efficientnet-b0_8xb32_in1k.py': {},
    'mobilenet_v2/mobilenet-v2_8xb32_in1k.py': {},
    'mobilevit/mobilevit-xxsmall_8xb128_in1k.py': {},
    'regnet/regnetx-400mf_8xb128_in1k.py': {},
    'resnet/resnet18_8xb16_cifar10.py': {},
    'resnet/resnet50_8xb32_in1k.py': {
        'backbone.base_channels': 16,
        'backbone.stem_channels': 16,
        'head.in_channels': 512,
    },
    'swin_transformer/swin-tiny_16xb64_in1k.py': {},
    'van/van-tiny_8xb128_in1k.py': {},
}
QUICK_OF = {'mmseg': QUICK, 'mmpretrain': QUICK_CLASSIFIERS}


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


def zoo_root(zoo: str = 'mmseg') -> Path:
    """Where an installed package keeps its configs.

    Args:
        zoo: ``'mmseg'`` or ``'mmpretrain'``.

    Raises:
        FileNotFoundError: it came without them.
    """
    package = Path(import_module(zoo).__path__[0])
    for root in (package / '.mim' / 'configs', package.parent / 'configs'):
        if root.is_dir():
            return root
    raise FileNotFoundError(f'the {zoo} in {package} came without its model zoo (.mim/configs)')


def list_configs(root: Path) -> list[Path]:
    """The zoo's configs, without the parts that they inherit; r18 before r101."""

    def key(path: Path) -> list[str | int]:
        pieces = re.split(r'(\d+)', f'{path.parent.name}/{path.stem}')
        return [int(piece) if piece.isdigit() else piece for piece in pieces]

    return sorted((p for p in root.rglob('*.py') if '_base_' not in p.parts), key=key)


def quick_combinations(root: Path, zoo: str = 'mmseg') -> list[Combination]:
    """One combination for each family of backbones, see ``QUICK_OF``."""
    return [read_combination(root / path, overrides) for path, overrides in QUICK_OF[zoo].items()]


def read_combination(path: Path, overrides: dict | None = None) -> Combination:
    """What a config combines.

    Args:
        overrides: dotted keys inside the config's ``model``, with other values.

    Raises:
        ImportError: the config imports a package that is not installed.
    """
    model = Config.fromfile(path).model
    heads = model.get('decode_head') or model.get('head')
    heads = heads if isinstance(heads, (list, tuple)) else [heads]
    names = [type_name(model), type_name(model.get('backbone')), ' + '.join(map(type_name, heads))]
    return Combination(*names, path, overrides or {})


def find_combinations(
    answers: Iterable[Combination | str],
) -> tuple[list[Combination], Counter[str]]:
    """The distinct combinations that PFB is for, ascending, and how many configs are left out why.

    Args:
        answers: of :func:`try_to_read`.
    """
    found: dict[Combination, None] = {}
    left_out: Counter[str] = Counter()
    for answer in answers:
        if isinstance(answer, str):
            left_out[answer] += 1
        elif answer.segmentor not in SEGMENTORS + CLASSIFIERS:
            left_out[f'{answer.segmentor} is none of {", ".join(SEGMENTORS + CLASSIFIERS)}'] += 1
        else:
            found.setdefault(answer)
    return sorted(found), left_out


def try_to_read(path: Path) -> Combination | str:
    """What a config combines, or why that cannot be told."""
    try:
        return read_combination(path)
    except ImportError as error:
        imports = re.findall(r"'imports': \[?'([\w.]+)'", str(error))
        return f'{imports[0]} cannot be imported' if imports else str(error)
    except Exception as error:  # it is the zoo's: no model, names that are missing, two syntaxes
        return f'{type(error).__name__} while it is read'


def type_name(cfg: dict | None) -> str:
    kind = (cfg or {}).get('type', '-')
    return kind if isinstance(kind, str) else kind.__name__
