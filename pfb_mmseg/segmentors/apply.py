"""Turning PFB on in a config that knows nothing of it, and off in one that has it."""

from mmengine.config import Config
from mmseg.models.segmentors import CascadeEncoderDecoder, EncoderDecoder
from mmseg.registry import MODELS

from ..core.checks import check_dict, check_number
from .encoder_decoder import PFBCascadeEncoderDecoder, PFBEncoderDecoder
from .mixin import PFBMixin

_COUNTERPARTS = {
    EncoderDecoder: PFBEncoderDecoder,
    CascadeEncoderDecoder: PFBCascadeEncoderDecoder,
}


def apply_pfb(cfg: Config, prune_ratio: float) -> list[str]:
    """Changes a config in place so that its model trains with PFB.

    The model's type becomes its PFB counterpart, ``model.pfb`` gets the ratio, and what registers
    the type and drives the schedule is added. Whatever the config already says of PFB stays.

    Args:
        cfg: Config of a segmentor.
        prune_ratio: Share of each batch that is pruned, in [0, 1).

    Returns:
        A sentence for each change.

    Raises:
        TypeError, ValueError: If ``prune_ratio`` is outside its range, or the model's type is
            neither EncoderDecoder nor CascadeEncoderDecoder nor one that has PFBMixin.
    """
    check_number('prune_ratio', prune_ratio, 0, 1, open_high=True)
    changes = []

    plain, blocked = cfg.model.type, _blocked_type(cfg.model.type)
    if blocked != plain:
        cfg.model.type = blocked
        changes.append(f'model.type: {type_name(plain)} -> {blocked}')

    options = {} if cfg.model.get('pfb') is None else cfg.model.pfb
    check_dict('model.pfb', options)
    ratio = options.get('prune_ratio', 'not set')
    if ratio != prune_ratio:
        cfg.model.pfb = {**options, 'prune_ratio': prune_ratio}
        changes.append(f'model.pfb.prune_ratio: {ratio} -> {prune_ratio}')

    if add_import(cfg):
        changes.append('custom_imports: pfb_mmseg added')

    hooks = cfg.get('custom_hooks') or []
    if not isinstance(hooks, (list, tuple)) or not all(isinstance(hook, dict) for hook in hooks):
        raise TypeError(f'custom_hooks={hooks!r}: expected a list of dicts')
    if not any(type_name(hook.get('type')) == 'PFBHook' for hook in hooks):
        cfg.custom_hooks = [*hooks, dict(type='PFBHook')]
        changes.append('custom_hooks: PFBHook added')
    return changes


def remove_pfb(cfg: Config) -> None:
    """Changes a config in place so that its model trains on all images, as without PFB.

    Args:
        cfg: Config of a segmentor, with PFB or not.

    Raises:
        ValueError: the model's type has PFBMixin, but what it is without is not known.
    """
    plain = _plain_type(cfg.model.type)
    cfg.model.pop('pfb', None)
    cfg.model.type = plain
    if cfg.get('custom_hooks'):
        cfg.custom_hooks = [
            hook for hook in cfg.custom_hooks if type_name(hook.get('type')) != 'PFBHook'
        ]


def add_import(cfg: Config) -> bool:
    """Lets a config import this package, which registers its types. Returns whether it did not."""
    custom_imports = cfg.get('custom_imports') or {}
    imports = custom_imports.get('imports') or []
    imports = [imports] if isinstance(imports, str) else list(imports)
    if 'pfb_mmseg' in imports:
        return False
    cfg.custom_imports = {**custom_imports, 'imports': [*imports, 'pfb_mmseg']}
    return True


def _plain_type(model_type: str | type) -> str | type:
    model_class = MODELS.get(model_type) if isinstance(model_type, str) else model_type
    for plain, blocked in _COUNTERPARTS.items():
        if model_class is blocked:
            scope = '' if model_type == type_name(model_type) else 'mmseg.'
            return scope + plain.__name__
    if isinstance(model_class, type) and issubclass(model_class, PFBMixin):
        raise ValueError(
            f'model.type={model_type!r} has PFBMixin, and what it is without is not known; name '
            'its plain counterpart in the config'
        )
    return model_type


def _blocked_type(model_type: str | type) -> str | type:
    model_class = MODELS.get(model_type) if isinstance(model_type, str) else model_type
    if model_class in _COUNTERPARTS:
        # A class or a full path (configs in Python's import syntax) may come without default_scope.
        scope = '' if model_type == type_name(model_type) else 'mmseg.'
        return scope + _COUNTERPARTS[model_class].__name__
    if isinstance(model_class, type) and issubclass(model_class, PFBMixin):
        return model_type
    found = 'is not registered' if model_class is None else 'has no PFB counterpart'
    raise ValueError(
        f'model.type={model_type!r} {found}: PFB is turned on for EncoderDecoder and '
        'CascadeEncoderDecoder, and for types that have PFBMixin. For your own segmentor, register '
        '`class MySegmentor(PFBMixin, YourSegmentor)`, with PFBMixin from pfb_mmseg, and name it '
        "in the config: model = dict(type='MySegmentor', ...)"
    )


def type_name(registered: object) -> str:
    """The bare name of a type, given as a string, with or without scope, or as a class."""
    return getattr(registered, '__name__', str(registered)).rpartition('.')[-1]
