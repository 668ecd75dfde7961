"""The blocking point: finding the module, running the encoder up to it, reading what it returns."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from ..core import Candidates
from ..core.representation import spatial_mean, token_grid
from .scoring import scoring_mode

_SIZES = ((128, 256), (224, 448), (224, 224))


class _Reached(Exception):
    """Leaves a forward pass that need not go on."""


class _NotReached(ValueError):
    """The encoder has the module, but its forward pass does not call it."""


class BlockingPoint:
    """A module inside a model's encoder, whose output represents the images.

    The output may be a tensor (N, C, H, W), (N, H, W, C) or (N, L, C), or a tuple, list or dict of
    such; which dimension holds the channels is found by one pass over a blank image, the first time
    that anything is run, or before in :meth:`prepare`.

    Encoder and module are looked up whenever they are needed, so that they may be wrapped (FSDP,
    activation checkpointing, ``torch.compile``), converted (SyncBN) or copied in the meantime.

    Args:
        host: the model; its encoder is called as ``encoder(images)``. A model without an attribute
            of that name is its own encoder.
        name: dotted name of the module inside the encoder.
        input_shape: (channels, height, width) of the blank image, best twice as wide as high, so
            that the channels of a square feature map are not mistaken. None: three channels, or
            those of the encoder's first convolution if it takes no three, and the first size that
            it takes of 128x256, 224x448, 224x224 and its own ``img_size``.
        encoder_name: of the host's attribute that is the encoder.

    Attributes:
        num_channels: C, the length of the vectors that :meth:`score` returns; None before
            :meth:`prepare`.
        scoring: whether a pass is under way that ends at this point. Forward hooks in front of it
            fire in that pass and in the training pass, and may ask which one it is.
        input_shape: of the blank image; None before :meth:`prepare` if none was given.
        like: an empty tensor of the type and on the device of blank images.

    Raises:
        ValueError: there is no such module.
    """

    def __init__(
        self,
        host: nn.Module,
        name: str,
        input_shape: tuple[int, int, int] | None = None,
        *,
        encoder_name: str = 'backbone',
    ) -> None:
        self.host = host
        self.name = name
        self.encoder_name = encoder_name
        self.input_shape = None if input_shape is None else tuple(input_shape)
        self.num_channels: int | None = None
        self.channel_dims: list[int] = []
        self.scoring = False
        self.like = torch.empty(0)
        names = [known for known, _ in self.encoder.named_modules() if known]
        if name not in names:
            near = difflib.get_close_matches(name, names, n=3)
            children = ', '.join(child for child, _ in self.encoder.named_children())
            hint = f'did you mean {" or ".join(map(repr, near))}?'
            raise ValueError(
                f'the encoder has no module {name!r} to block after; '
                f'{hint if near else f"its children are {children}"}'
            )

    @property
    def encoder(self) -> nn.Module:
        """The host's encoder, with whatever is wrapped around it; or the host."""
        return getattr(self.host, self.encoder_name, self.host)

    @property
    def path(self) -> str:
        """Dotted name inside the host, as a user writes it: ``'backbone.layer3'``."""
        return f'{self.encoder_name}.{self.name}'

    @property
    def module(self) -> nn.Module:
        """The module that is blocked behind, with whatever is wrapped around it.

        Raises:
            ValueError: the encoder has lost it.
        """
        module = find_module(self.encoder, self.name.split('.'))
        if module is None:
            raise ValueError(
                f'the module {self.name!r} to block after is no longer in the encoder, which is '
                f'now:\n{self.encoder}'
            )
        return module

    @torch.compiler.disable
    def prepare(self, like: Tensor | None = None) -> None:
        """Find the channels by a pass over a blank image, the first time that this is called.

        In a distributed run all processes must call it at the same moment.

        Args:
            like: images of whose type and on whose device the blank one shall be; None: of the
                encoder's parameters.

        Raises:
            ValueError: the forward pass never calls the module, it returns no feature map with a
                row for each image, or the encoder cannot take the blank image.
        """
        like = next(self.encoder.parameters(), self.like) if like is None else like
        self.like = torch.empty(0, dtype=like.dtype, device=like.device)
        if self.num_channels is not None:
            return
        given = self.input_shape
        shapes = _usual_shapes(self.encoder) if given is None else [given]
        for shape in shapes:
            try:
                output = self._try(self.like.new_zeros(1, *shape))
                break
            except _NotReached:
                raise
            except Exception as error:  # whatever it is that this encoder has against the shape
                failure = error
        else:
            raise ValueError(self.refusal(shape, failure)) from failure
        tensors = feature_tensors(output)
        if not tensors or any(len(tensor) != 1 for tensor in tensors):
            raise ValueError(
                f'the module {self.name!r} returns no feature map with a row for each image; '
                'choose another block_after'
            )
        self.input_shape = shape
        self.channel_dims = [_channel_dim(tensor, shape[2] // shape[1]) for tensor in tensors]
        self.num_channels = sum(
            tensor.shape[dim] for tensor, dim in zip(tensors, self.channel_dims, strict=True)
        )

    @torch.compiler.disable
    def score(self, images: Tensor) -> Tensor:
        """Run the encoder up to this point only.

        The caller decides about gradients and modes, see :func:`scoring_mode`.

        Args:
            images: (N, ...) as the encoder takes them.

        Returns:
            (N, C) float32 without gradient: the output averaged over space; of several tensors,
            one after the other.

        Raises:
            ValueError: see :meth:`prepare`.
        """
        self.prepare(images)
        return self.vectors(self.reach(lambda: self.encoder(images))).detach()

    def candidates(self, images: Tensor) -> PointCandidates:
        """The images (N, ...) of a batch for :class:`BatchPruner`; they run up to this point if its
        criterion asks for features."""
        return PointCandidates(self, images)

    def check_scale(self, scale: float) -> None:
        """Try to score a blank image of ``scale`` times the height and width.

        Raises:
            ValueError: see :meth:`prepare`; or the encoder takes images of its own size only.
        """
        self.prepare()
        image = self.blank_images(1)
        height, width = (int(size * scale) for size in image.shape[2:])
        try:
            self._try(shrink(image, scale))
        except Exception as error:  # whatever it is that this encoder has against the size
            raise ValueError(
                f'score_scale={scale}: {type(self.encoder).__name__} cannot take images of '
                f'{height}x{width} pixels ({error}); leave score_scale at 1'
            ) from error

    def blank_images(self, num: int) -> Tensor:
        """(num, C, H, W) of zeros, when this point is prepared."""
        return self.like.new_zeros(num, *self.input_shape)

    def refusal(self, shape: tuple[int, ...], error: Exception) -> str:
        """What to say of an encoder that fails on a blank image."""
        return (
            f'{type(self.encoder).__name__} cannot take a blank image of shape {shape}: {error}. '
            'Set input_shape=(channels, height, width) to one that it takes, if that is the reason'
        )

    def _try(self, image: Tensor) -> Any:
        with scoring_mode(self.encoder, batch_statistics=False):
            return self.reach(lambda: self.encoder(image))

    @torch.compiler.disable
    def reach(self, forward: Callable[[], Any], until: nn.Module | None = None) -> Any:
        """What the module returns in a forward pass that is left there, as it is.

        Args:
            forward: runs the encoder, or a model with it.
            until: a module that runs behind this point and shall run too; None: nothing does.

        Raises:
            ValueError: the pass does not come here.
        """
        reached: list[Any] = []

        def remember(module: nn.Module, args: Any, output: Any) -> None:
            reached.append(output)

        def stop(module: nn.Module, args: Any, output: Any) -> None:
            if reached:  # one behind the point may run before it too
                raise _Reached

        last = self.module if until is None else until
        handles = [
            self.module.register_forward_hook(remember),
            last.register_forward_hook(stop),
        ]
        self.scoring = True
        try:
            forward()
        except _Reached:
            return reached[0]
        finally:
            self.scoring = False
            for handle in handles:
                handle.remove()
        raise _NotReached(
            f'the blocking point {self.name!r} is never reached: the encoder has such a module but '
            'its forward pass does not call it; choose another block_after'
        )

    def vectors(
        self, output: Any, valid: Tensor | None = None, size: tuple[int, int] | None = None
    ) -> Tensor:
        """What the module returns -> (N, C) float32, see :meth:`score`.

        Args:
            output: of the module.
            valid: (N, 2), which share of each image is no padding, see :func:`spatial_mean`. Tokens
                that are no grid are averaged over the padding, too.
            size: (H, W) of the images that the encoder was given; asked for with ``valid``.
        """
        vectors = []
        for tensor, dim in zip(feature_tensors(output), self.channel_dims, strict=True):
            grid = token_grid(tensor.shape[1], *size) if tensor.ndim == 3 and size else None
            has_space = tensor.ndim == 4 or grid is not None
            vectors.append(spatial_mean(tensor, dim, valid if has_space else None, grid))
        return torch.cat(vectors, dim=1)


@contextmanager
def returned_by(module: nn.Module) -> Iterator[list[tuple[Any, bool]]]:
    """What a module returns in the forward passes within, and whether it ran with gradient."""
    outputs: list[tuple[Any, bool]] = []
    handle = module.register_forward_hook(
        lambda module, args, output: outputs.append((output, torch.is_grad_enabled()))
    )
    try:
        yield outputs
    finally:
        handle.remove()


class PointCandidates(Candidates):
    """Images (N, ...) whose features at a point are computed when they are asked for."""

    def __init__(self, point: BlockingPoint, images: Tensor) -> None:
        super().__init__(len(images), images.device)
        self._point = point
        self._images = images

    def features(self) -> Tensor:
        with scoring_mode(self._point.encoder):
            return self._point.score(self._images)


def find_module(module: nn.Module, path: list[str]) -> nn.Module | None:
    """The module at the end of a path that may have got wrappers on the way; None if it is gone."""
    if not path:
        return module
    children = dict(module.named_children())
    first = [find_module(children[path[0]], path[1:])] if path[0] in children else []
    behind = (find_module(child, path) for child in children.values())
    return next((found for found in chain(first, behind) if found is not None), None)


def shrink(images: Tensor, scale: float) -> Tensor:
    """(N, C, H, W) images at ``scale`` times their height and width."""
    return F.interpolate(images, scale_factor=scale, mode='bilinear')


def _usual_shapes(encoder: nn.Module) -> list[tuple[int, int, int]]:
    convolutions = (module for module in encoder.modules() if isinstance(module, _ConvNd))
    first = next((conv.in_channels for conv in convolutions), 3)
    size = getattr(encoder, 'img_size', None)  # of encoders with a table of positions
    own = [] if size is None else [tuple(size) if isinstance(size, Sequence) else (size, size)]
    # Colour first: a convolution may get the image folded, four pixels in each place.
    return [(channels, *size) for channels in dict.fromkeys((3, first)) for size in [*_SIZES, *own]]


def _channel_dim(tensor: Tensor, ratio: int) -> int:
    """The dimension of a one-image output that is neither the batch nor space."""
    _, *shape = tensor.shape
    if len(shape) == 2:
        return -1
    if len(shape) == 3 and shape[1] == ratio * shape[0] and shape[2] != ratio * shape[1]:
        return -1
    return 1


def feature_tensors(output: Any) -> list[Tensor]:
    """The floating-point tensors with a batch dimension and channels in a nested output."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() and output.ndim > 1 else []
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, (tuple, list)):
        return [tensor for item in output for tensor in feature_tensors(item)]
    return []
