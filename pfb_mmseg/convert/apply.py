"""Turning PFB on in a config that knows nothing of it, and off in one that has it."""

from __future__ import annotations

import copyreg
from functools import cache
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from ..core.checks import check_dict, check_number
from ..models.mixin import PFBMixin
from ..models.task import task_class

# What goes by a name of its own; everything else is a PFBModel.
_NAMED = {
    'mmseg.EncoderDecoder': 'mmseg.PFBEncoderDecoder',
    'mmseg.CascadeEncoderDecoder': 'mmseg.PFBCascadeEncoderDecoder',
    # Found from every scope, and before MMPretrain is imported.
    'mmpretrain.ImageClassifier': 'PFBImageClassifier',
}
_REGISTER = 'import the module that registers it, custom_imports=dict(imports=[...])'
# The second and third are listed only by those who give them options of their own.
_HOOKS = ('PFBHook', 'PFBLogHook', 'PFBRecordHook')


@MODELS.register_module(name='PFBModel')
def build_model(host: str | type, **options: Any) -> nn.Module:
    """Any other model with PFBMixin, as ``type='PFBModel'`` in a config.

    Args:
        host: its type in a config without PFB: a registered name or a class.
        **options: what that type takes, and ``pfb``.

    Raises:
        ValueError: there is no such type.
    """
    with MODELS.switch_scope_and_registry(None) as registry:
        found = registry.get(host) if isinstance(host, str) else host
    if not isinstance(found, type):
        raise ValueError(f"PFBModel's host={host!r} is not registered; {_REGISTER}")
    return blocked_class(found)(**options)


@cache
def blocked_class(host: type) -> type:
    """``class PFBHost(PFBMixin, Host)``, the same whenever it is asked for."""
    if issubclass(host, PFBMixin):
        return host
    blocked = type(f'PFB{host.__name__}', (PFBMixin, host), {})
    # No module holds this class, so that its models are pickled as what to make it of.
    copyreg.pickle(blocked, lambda model: (_empty_model, (host,), *model.__reduce_ex__(2)[2:]))
    return blocked


def _empty_model(host: type) -> nn.Module:
    """A model of :func:`blocked_class` that still lacks all its state, for pickle."""
    blocked = blocked_class(host)
    return blocked.__new__(blocked)


def apply_pfb(cfg: Config, prune_ratio: float, skip_loading: float = 0.0) -> list[str]:
    """Changes a config in place so that its model trains with PFB.

    The model's type becomes its PFB counterpart, ``model.pfb`` gets the ratio and, where it names
    no criterion, ``'hard'``, which is recommended; and what registers the type and drives the
    schedule is added. Whatever else the config already says of PFB stays.

    Args:
        cfg: Config of a segmentor or a classifier.
        prune_ratio: Share of each batch that is pruned, in [0, 1).
        skip_loading: Share of each batch that is left out before it is loaded, in [0, prune_ratio);
            0 leaves the loader as it is, see :class:`PFBBatchSampler`.

    Returns:
        A sentence for each change.

    Raises:
        TypeError, ValueError: a share is outside its range, or the model's type is neither a
            segmentor of MMSegmentation, nor an ImageClassifier of MMPretrain, nor has PFBMixin.
    """
    check_number('prune_ratio', prune_ratio, 0, 1, open_high=True)
    check_number('skip_loading', skip_loading, 0, 1, open_high=True)
    changes = []

    if blocked := _blocked(cfg):
        host = ', host kept in model.host' if 'host' in blocked else ''
        changes.append(f'model.type: {type_name(cfg.model.type)} -> {blocked["type"]}{host}')
        cfg.model.update(blocked)

    options = {} if cfg.model.get('pfb') is None else cfg.model.pfb
    check_dict('model.pfb', options)
    cfg.model.pfb = wanted = {'criterion': 'hard', **options, 'prune_ratio': prune_ratio}
    for name in ('prune_ratio', 'criterion'):
        before = options.get(name, 'not set')
        if before != wanted[name]:
            changes.append(f'model.pfb.{name}: {before} -> {wanted[name]}')

    if add_import(cfg):
        changes.append('custom_imports: pfb_mmseg added')

    hooks = cfg.get('custom_hooks') or []
    if not isinstance(hooks, (list, tuple)) or not all(isinstance(hook, dict) for hook in hooks):
        raise TypeError(f'custom_hooks={hooks!r}: expected a list of dicts')
    if not any(type_name(hook.get('type')) == 'PFBHook' for hook in hooks):
        cfg.custom_hooks = [*hooks, dict(type='PFBHook')]
        changes.append('custom_hooks: PFBHook added')

    if skip_loading:
        cfg.train_dataloader.batch_sampler = _batch_sampler(cfg, skip_loading)
        changes.append(f'train_dataloader.batch_sampler: PFBBatchSampler, {skip_loading=}')
    return changes


def _batch_sampler(cfg: Config, skip_loading: float) -> dict[str, Any]:
    loader = cfg.train_dataloader
    found = loader.get('batch_sampler') or {}
    if found and type_name(found.get('type')) != 'PFBBatchSampler':
        raise ValueError(
            f'skip_loading={skip_loading}: train_dataloader.batch_sampler is {found["type"]!r} '
            'already; remove it'
        )
    options = {'type': 'PFBBatchSampler', **found, 'skip_loading': skip_loading}
    if loader.pop('drop_last', False):  # torch takes it from the batch sampler, if there is one
        options['drop_last'] = True
    return options


def remove_pfb(cfg: Config) -> None:
    """Changes a config in place so that its model trains on all images, as without PFB.

    Args:
        cfg: Config of a segmentor or a classifier, with PFB or not.

    Raises:
        ValueError: the model's type has PFBMixin, but what it is without is not known.
    """
    plain = _plain_type(cfg)
    for option in ('pfb', 'host') if type_name(cfg.model.type) == 'PFBModel' else ('pfb',):
        cfg.model.pop(option, None)
    cfg.model.type = plain
    found = (cfg.get('train_dataloader') or {}).get('batch_sampler') or {}
    if type_name(found.get('type')) == 'PFBBatchSampler':
        cfg.train_dataloader.pop('batch_sampler')
        if found.get('drop_last'):
            cfg.train_dataloader.drop_last = True
    if cfg.get('custom_hooks'):
        cfg.custom_hooks = [
            hook for hook in cfg.custom_hooks if type_name(hook.get('type')) not in _HOOKS
        ]


def add_import(cfg: Config) -> bool:
    """Lets a config import this package, which registers its types. Returns whether it did not."""
    imports = imports_of(cfg)
    if 'pfb_mmseg' in imports:
        return False
    others = cfg.get('custom_imports') or {}
    cfg.custom_imports = {**others, 'imports': [*imports, 'pfb_mmseg']}
    return True


def imports_of(cfg: Config) -> list[str]:
    """The modules that a config has MMEngine import."""
    imports = (cfg.get('custom_imports') or {}).get('imports') or []
    return [imports] if isinstance(imports, str) else [*imports]


def _model_class(cfg: Config) -> Any:
    """What the config's ``model.type`` stands for in its scope; None if nothing is registered."""
    if not isinstance(cfg.model.type, str):
        return cfg.model.type
    # A class or a full path (configs in Python's import syntax) may come without default_scope.
    with MODELS.switch_scope_and_registry(cfg.get('default_scope') or 'mmseg') as registry:
        return registry.get(cfg.model.type)


def type_name(registered: object) -> str:
    """The bare name of a type, given as a string, with or without scope, or as a class."""
    return getattr(registered, '__name__', str(registered)).rpartition('.')[-1]


def _in_scope(cfg: Config, name: str) -> str:
    """``scope.Name`` as the config spells its model's type: bare, where that is and finds it."""
    model_type = cfg.model.type
    bare = model_type == type_name(model_type)
    scope = cfg.get('default_scope', 'mmseg')
    return name.removeprefix(f'{scope}.') if bare else name


def _blocked(cfg: Config) -> dict[str, str]:
    """What changes in ``cfg.model`` for its type to be one with PFBMixin; nothing if it is."""
    model_type, found = cfg.model.type, _model_class(cfg)
    names = [type_name(name) for name in (*_NAMED.values(), 'PFBModel')]
    if type_name(model_type) in names or (isinstance(found, type) and issubclass(found, PFBMixin)):
        return {}
    if not isinstance(found, type):
        raise ValueError(f'model.type={model_type!r} is not registered: {_REGISTER}')
    plain = f'{found.__module__.partition(".")[0]}.{found.__name__}'
    if plain in _NAMED:
        return {'type': _in_scope(cfg, _NAMED[plain])}
    if task_class(found) is None:
        raise ValueError(
            f'model.type={model_type!r} is neither a segmentor of MMSegmentation with a loss '
            'nor an ImageClassifier of MMPretrain, for which PFB can be turned on. For your own '
            'model with a backbone and a loss, register `class MyPFBModel(PFBMixin, YourModel)`, '
            "with PFBMixin from pfb_mmseg, and name it: model = dict(type='MyPFBModel', ...)"
        )
    host = model_type if isinstance(model_type, str) else f'{found.__module__}.{found.__qualname__}'
    return {'type': 'PFBModel', 'host': host}


def _plain_type(cfg: Config) -> str | type:
    model_type, found = cfg.model.type, _model_class(cfg)
    if type_name(model_type) == 'PFBModel':
        return cfg.model.host
    for plain, blocked in _NAMED.items():
        if type_name(model_type) == type_name(blocked):
            return _in_scope(cfg, plain)
    if isinstance(found, type) and issubclass(found, PFBMixin):
        raise ValueError(
            f'model.type={model_type!r} has PFBMixin, and what it is without is not known; name '
            'its plain counterpart in the config'
        )
    return model_type
