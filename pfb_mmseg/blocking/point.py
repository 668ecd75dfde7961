"""The blocking point: the module behind which pruned images stop."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from ..core import Candidates
from ..core.representation import spatial_mean, token_grid
from .scoring import scoring_mode
from .torch_internals import in_backward, is_checkpointed


class _Reached(Exception):
    """Leaves a forward pass that need not go on."""


class RunsTwice(ValueError):
    """The blocking point, or what lies behind it, runs several times in a pass that is cut."""


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
            those of the encoder's first convolution if it takes no three, and the first of
            ``blank_sizes`` that it takes, or its ``img_size`` if it takes one size only.
        encoder_name: of the host's attribute that is the encoder.
        blank_sizes: heights and widths of blank images to try where ``input_shape`` says nothing.

    Attributes:
        num_channels: C, the length of the vectors that :meth:`score` returns; None before
            :meth:`prepare`.
        scoring: whether a pass is under way that ends at this point. Forward hooks in front of it
            fire in that pass and in the training pass, and may ask which one it is.
        input_shape: of the blank image; None before :meth:`prepare` if none was given.

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
        blank_sizes: Sequence[tuple[int, int]] = ((128, 256),),
    ) -> None:
        self.host = host
        self.name = name
        self.encoder_name = encoder_name
        self.blank_sizes = blank_sizes
        self.input_shape = None if input_shape is None else tuple(input_shape)
        self.num_channels: int | None = None
        self.channel_dims: list[int] = []
        self.scoring = False
        self._recutting: RemovableHandle | None = None
        _check_name(self.encoder, name)

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
        if self.num_channels is not None:
            return
        given = self.input_shape
        shapes = _usual_shapes(self.encoder, self.blank_sizes) if given is None else [given]
        shape, output = self._first_that_runs(shapes, like)
        tensors = feature_tensors(output)
        if not tensors or any(len(tensor) != 1 for tensor in tensors):
            raise ValueError(
                f'the module {self.name!r} returns no feature map with a row for each image; '
                'choose another block_after'
            )
        ratio = shape[2] // shape[1]
        self.input_shape = shape
        self.channel_dims = [_channel_dim(tensor, ratio) for tensor in tensors]
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
        return self.vectors(self.reach(lambda: self.encoder(images)))

    def candidates(self, images: Tensor, batch_statistics: bool = True) -> PointCandidates:
        """The images of a batch for :class:`BatchPruner`, which run up to this point if it asks.

        Args:
            images: (N, ...) as the encoder takes them.
            batch_statistics: see :func:`scoring_mode`.
        """
        return PointCandidates(self, images, batch_statistics)

    @contextmanager
    def cut(self, choose: Callable[[Any], Tensor]) -> Iterator[None]:
        """Let only the chosen images go on from here, in a forward pass of the encoder.

        Where that pass is recomputed in the backward pass (activation checkpointing), the same ones
        go on again.

        Args:
            choose: gets what the module returns for all N images, returns the ascending positions
                of the images that stay, (K,) int64. What the encoder returns is narrowed to them
                too, stages before this point included.

        Raises:
            RunsTwice: within the block, if the module or what lies behind it runs more than once.
        """
        self.prepare()
        if self._recutting is not None:
            self._recutting.remove()
            self._recutting = None
        under_way, recomputed = True, False
        with_gradient = torch.is_grad_enabled()
        indices: Tensor | None = None
        num_images = 0

        def at_point(module: nn.Module, args: Any, output: Any) -> Any:
            nonlocal indices, num_images, recomputed
            if under_way:
                if indices is not None:
                    raise RunsTwice(
                        f'{self.path} runs more than once in a step (two dates, branches or '
                        "passes), and strategy='single_pass' makes one choice in one pass; use "
                        "strategy='two_pass'"
                    )
                recomputed = with_gradient and is_checkpointed()
                num_images = len(feature_tensors(output)[0])
                # Where this pass is recomputed, what is computed here is not.
                with saved_tensors_hooks(_itself, _itself):
                    indices = choose(output)
            elif not in_backward():
                return None
            return _narrow(output, indices, num_images)

        def at_end(module: nn.Module, args: Any, output: Any) -> Any:
            output = _narrow(output, indices, num_images)
            if indices is not None and _has_branches(output, len(indices)):
                raise RunsTwice(
                    f'{type(self.encoder).__name__} returns several rows for each image, as '
                    "branches that share weights do, and strategy='single_pass' cannot tell which "
                    "samples they are of; use strategy='two_pass'"
                )
            return output

        cutting = self.module.register_forward_hook(at_point)
        ending = self.encoder.register_forward_hook(at_end)
        try:
            yield
        finally:
            under_way = False
            ending.remove()
            if recomputed:  # until the next cut; no backward pass of this one comes after it
                self._recutting = cutting
            else:
                cutting.remove()

    def check_cut(self, like: Tensor | None = None) -> None:
        """Try a cut on blank images.

        Args:
            like: see :meth:`prepare`.

        Raises:
            ValueError: see :meth:`prepare`; the rest of the encoder cannot take the blank image; or
                it still needs all the images there, as one with several branches does.
        """
        self.prepare(like)
        images = self.blank_images(3, like)
        images += torch.arange(3, device=images.device)[:, None, None, None]
        kept = torch.tensor([0, 2], device=images.device)
        cut = False
        untouched: list[str] = []

        def choose(output: Any) -> Tensor:
            nonlocal cut
            cut = True
            return kept

        def watch(module: nn.Module, args: Any, kwargs: Any) -> None:
            if cut and any(len(tensor) == 3 for tensor in feature_tensors([args, kwargs])):
                untouched.append(type(module).__name__)

        with scoring_mode(self.encoder, batch_statistics=False):
            try:
                whole = self.encoder(images)
            except Exception as error:  # one that ends in linear layers takes one size only
                raise ValueError(
                    f'{self._refusal(self.input_shape, error)}{_ANOTHER_SHAPE}'
                ) from error
            handles = [
                module.register_forward_pre_hook(watch, with_kwargs=True)
                for module in self.encoder.modules()
            ]
            try:
                with self.cut(choose):
                    output = self.encoder(images)
            except Exception as error:  # whatever it is that this encoder stumbles over
                raise ValueError(_NO_CHAIN.format(name=self.name)) from error
            finally:
                for handle in handles:
                    handle.remove()
        expected = feature_tensors(_narrow(whole, kept, 3))
        if untouched or not all(map(_close, feature_tensors(output), expected)):
            raise ValueError(_NO_CHAIN.format(name=self.name))

    def check_scale(self, scale: float, like: Tensor | None = None) -> None:
        """Try to score a blank image of another size.

        Args:
            scale: of height and width.
            like: see :meth:`prepare`.

        Raises:
            ValueError: see :meth:`prepare`; or the encoder takes images of its own size only.
        """
        self.prepare(like)
        image = self.blank_images(1, like)
        height, width = (int(size * scale) for size in self.input_shape[1:])
        try:
            with scoring_mode(self.encoder, batch_statistics=False):
                self.score(shrink(image, scale))
        except Exception as error:  # whatever it is that this encoder has against the size
            raise ValueError(
                f'score_scale={scale}: {type(self.encoder).__name__} cannot take images of '
                f'{height}x{width} pixels ({error}); leave score_scale at 1'
            ) from error

    def blank_images(self, num: int, like: Tensor | None = None) -> Tensor:
        """(num, *input_shape) of zeros; of which type and where, see :meth:`prepare`."""
        return _blank(self.encoder, (num, *self.input_shape), like)

    def _first_that_runs(self, shapes: list[tuple], like: Tensor | None) -> tuple[tuple, Any]:
        for shape in shapes:
            try:
                return shape, self._try(shape, like)
            except _NotReached:
                raise
            except Exception as error:  # whatever it is that this encoder has against the shape
                failure = error
        sentence = self._refusal(shape, failure)
        if self._is_of_the_shape(failure, shape, like):
            sentence += _ANOTHER_SHAPE
        raise ValueError(sentence) from failure

    def _refusal(self, shape: tuple[int, ...], error: Exception) -> str:
        return f'{type(self.encoder).__name__} cannot take a blank image of shape {shape}: {error}'

    def _is_of_the_shape(self, failure: Exception, shape: tuple, like: Tensor | None) -> bool:
        """Whether another shape may help: one of half the size does not fail in the same words."""
        if isinstance(failure, (AssertionError, ValueError)):
            return True  # raised on purpose by what looks at its input
        channels, height, width = shape
        try:
            self._try((channels, height // 2, width // 2), like)
        except Exception as error:  # to be compared with the first
            return str(error) != str(failure)
        return True

    def _try(self, shape: tuple, like: Tensor | None) -> Any:
        with scoring_mode(self.encoder, batch_statistics=False):
            image = _blank(self.encoder, (1, *shape), like)
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

    def num_rows(self, output: Any) -> int:
        """How many images what the module returned is of."""
        return len(feature_tensors(output)[0])

    def vectors(
        self, output: Any, valid: Tensor | None = None, size: tuple[int, int] | None = None
    ) -> Tensor:
        """What the module returns -> (N, C) float32 without gradient, see :meth:`score`.

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
        return vectors[0] if len(vectors) == 1 else torch.cat(vectors, dim=1)

    def means(self, output: Any) -> Tensor:
        """The same as :meth:`vectors`, with the gradient and in the type of the output."""
        means = [
            tensor.flatten(2).mean(dim=2) if dim == 1 else tensor.flatten(1, -2).mean(dim=1)
            for tensor, dim in zip(feature_tensors(output), self.channel_dims, strict=True)
        ]
        return means[0] if len(means) == 1 else torch.cat(means, dim=1)


class PointCandidates(Candidates):
    """Images of which the features are known, and computed when they are asked for.

    Args:
        point: where the features are.
        images: (N, ...) as the point's encoder takes them.
        batch_statistics: see :func:`scoring_mode`.
    """

    def __init__(self, point: BlockingPoint, images: Tensor, batch_statistics: bool = True) -> None:
        super().__init__(len(images), images.device)
        self._point = point
        self._images = images
        self._batch_statistics = batch_statistics

    def features(self) -> Tensor:
        with scoring_mode(self._point.encoder, self._batch_statistics):
            return self._point.score(self._images)


_ANOTHER_SHAPE = '. Set input_shape=(channels, height, width) to one that it takes'
_NO_CHAIN = (
    "strategy='single_pass' needs an encoder that is a chain of stages; behind {name!r} this one "
    "still reads what came before it. Use strategy='two_pass', which works with every encoder"
)


def _check_name(encoder: nn.Module, name: str) -> None:
    names = [known for known, _ in encoder.named_modules() if known]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3)
        hint = (
            f'did you mean {" or ".join(map(repr, near))}?'
            if near
            else (f'its children are {", ".join(n for n, _ in encoder.named_children())}')
        )
        raise ValueError(f'the encoder has no module {name!r} to block after; {hint}')


def find_module(module: nn.Module, path: list[str]) -> nn.Module | None:
    """The module at the end of a path that may have got wrappers on the way; None if it is gone."""
    if not path:
        return module
    children = dict(module.named_children())
    first = [find_module(children[path[0]], path[1:])] if path[0] in children else []
    behind = (find_module(child, path) for child in children.values())
    return next((found for found in chain(first, behind) if found is not None), None)


def _blank(encoder: nn.Module, shape: tuple[int, ...], like: Tensor | None) -> Tensor:
    like = next(encoder.parameters()) if like is None else like
    return torch.zeros(shape, device=like.device, dtype=like.dtype)


def shrink(images: Tensor, scale: float) -> Tensor:
    """(N, C, H, W) images at ``scale`` times their height and width."""
    return F.interpolate(images, scale_factor=scale, mode='bilinear')


def _usual_shapes(
    encoder: nn.Module, blank_sizes: Sequence[tuple[int, int]]
) -> list[tuple[int, int, int]]:
    convolutions = (module for module in encoder.modules() if isinstance(module, _ConvNd))
    first = next((conv.in_channels for conv in convolutions), 3)
    size = getattr(encoder, 'img_size', None)  # of encoders with a table of positions
    own = [] if size is None else [tuple(size) if isinstance(size, Sequence) else (size, size)]
    # Colour first: a convolution may get the image folded, four pixels in each place.
    return [
        (channels, *size) for channels in dict.fromkeys((3, first)) for size in [*blank_sizes, *own]
    ]


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


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _has_branches(output: Any, num_images: int) -> bool:
    """Whether there are several rows for each image in a map that the encoder returns."""
    rows = [len(tensor) for tensor in feature_tensors(output) if tensor.ndim == 4]
    return any(num > num_images and num % num_images == 0 for num in rows)


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-2, atol=1e-3 * float(b.abs().max()))


def _narrow(output: Any, indices: Tensor, num_images: int) -> Any:
    """Keep the rows ``indices`` of every tensor that still has a row per image."""
    if isinstance(output, Tensor):
        if output.ndim > 1 and len(output) == num_images != len(indices):
            return output.index_select(0, indices)
        return output
    if isinstance(output, dict):
        return {key: _narrow(item, indices, num_images) for key, item in output.items()}
    if isinstance(output, (tuple, list)):
        return type(output)(_narrow(item, indices, num_images) for item in output)
    return output
