"""Models of MMSegmentation's zoo that predict masks, made small enough to train in a test."""

from pathlib import Path

import mmseg
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

import pfb_mmseg  # noqa: F401  registers the segmentors

ZOO = Path(mmseg.__file__).parent / '.mim' / 'configs'
MASK2FORMER = 'mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py'
MASK2FORMER_SWIN = 'mask2former/mask2former_swin-t_8xb2-90k_cityscapes-512x1024.py'
MASKFORMER = 'maskformer/maskformer_r50-d32_8xb2-160k_ade20k-512x512.py'
MASKFORMER_SWIN = 'maskformer/maskformer_swin-t_upernet_8xb2-160k_ade20k-512x512.py'
ALL = [MASK2FORMER, MASK2FORMER_SWIN, MASKFORMER, MASKFORMER_SWIN]

_AT_MOST = dict(
    embed_dims=32,
    feat_channels=32,
    out_channels=32,
    feedforward_channels=32,
    num_feats=16,
    num_layers=2,
    num_queries=8,
    num_points=64,  # of masks; those of attention are 4
)


def small_config(path):
    """A config of the zoo, with a model of few channels and layers, and without chance in it."""
    config = Config.fromfile(ZOO / path)
    _shrink(config.model.decode_head)
    model = config.model
    model.data_preprocessor.size = (64, 64)
    backbone = model.backbone
    backbone.init_cfg = None
    if backbone.type == 'ResNet':
        backbone.update(base_channels=8, stem_channels=8)
        backbone.norm_cfg.type = 'BN'
        model.decode_head.in_channels = [32, 64, 128, 256]
    else:
        backbone.update(embed_dims=12, depths=[1, 1, 2, 1], drop_path_rate=0.0)
        model.decode_head.in_channels = [12, 24, 48, 96]
    return config


def build(model_cfg, pfb=None):
    """In training mode; with ``pfb``, whatever chooses has learnt enough to."""
    init_default_scope('mmseg')
    cfg = dict(model_cfg)
    if pfb is not None:
        cfg.update(type='PFBEncoderDecoder', pfb=dict(prune_ratio=0.5, **pfb))
    torch.manual_seed(0)
    return MODELS.build(cfg).train()


def _shrink(node):
    if isinstance(node, dict):
        for key, value in node.items():
            if key in _AT_MOST and isinstance(value, int):
                node[key] = min(value, _AT_MOST[key])
            elif key in ('attn_drop', 'proj_drop', 'ffn_drop'):
                node[key] = 0.0
            else:
                _shrink(value)
    elif isinstance(node, list):
        for value in node:
            _shrink(value)
