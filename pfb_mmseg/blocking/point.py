"""The blocking point: the module behind which pruned images stop."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..core import spatial_mean
from .scoring import scoring_mode


class _Reached(Exception):
    """Carries the blocking point's output out of a forward pass that need not go on."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


class BlockingPoint:
    """A module inside an encoder, whose output represents the images.

    The output may be a tensor (N, C, H, W), (N, H, W, C) or (N, L, C), or a tuple, list or dict of
    such; which dimension holds the channels is found by one pass over an image of zeros, twice as
    wide as high.

    Args:
        encoder: the network that contains the module; called as ``encoder(images)``.
        name: dotted name of the module inside the encoder.
        input_shape: (channels, height, width) of the image of zeros; ``width == 2 * height``.

    Attributes:
        num_channels: C, the length of the vectors that :meth:`score` returns.

    Raises:
        ValueError: there is no such module, the forward pass never calls it, or it returns no
            feature map.
    """

    def __init__(
        self, encoder: nn.Module, name: str, input_shape: tuple[int, int, int] = (3, 128, 256)
    ) -> None:
        self.encoder = encoder
        self.name = name
        self.module = _submodule(encoder, name)
        with scoring_mode(encoder, batch_statistics=False):
            tensors = _tensors(self._run_to_point(_zeros(encoder, 1, input_shape)))
        ratio = input_shape[2] // input_shape[1]
        self._channel_dims = [_channel_dim(tensor, ratio) for tensor in tensors]
        self.num_channels = sum(
            tensor.shape[dim] for tensor, dim in zip(tensors, self._channel_dims, strict=True)
        )
        if not self.num_channels:
            raise ValueError(
                f'the module {name!r} returns no feature map; choose another block_after'
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
        """
        return self._vector(self._run_to_point(images))

    @contextmanager
    def cut(self, choose: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Let only the chosen images go on from here, in every forward pass of the encoder.

        Args:
            choose: gets the (N, C) vectors of :meth:`score`, returns the ascending positions of
                the images that stay, (K,) int64. What the encoder returns is narrowed to them too,
                stages before this point included.
        """
        indices: Tensor | None = None
        num_images = 0

        def at_point(module: nn.Module, args: Any, output: Any) -> Any:
            nonlocal indices, num_images
            vector = self._vector(output)
            num_images = len(vector)
            indices = choose(vector)
            return _narrow(output, indices, num_images)

        def at_end(module: nn.Module, args: Any, output: Any) -> Any:
            return _narrow(output, indices, num_images)

        handles = [
            self.module.register_forward_hook(at_point),
            self.encoder.register_forward_hook(at_end),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def check_cut(self, input_shape: tuple[int, int, int] = (3, 128, 256)) -> None:
        """Try a cut on images of zeros.

        Raises:
            ValueError: behind the blocking point the encoder still needs all the images, as one
                with several branches does.
        """
        images = _zeros(self.encoder, 3, input_shape)
        kept = torch.arange(2, device=images.device)
        try:
            with scoring_mode(self.encoder, batch_statistics=False), self.cut(lambda vector: kept):
                output = self.encoder(images)
        except (RuntimeError, ValueError, IndexError) as error:
            raise ValueError(_NO_CHAIN.format(name=self.name)) from error
        if any(len(tensor) != 2 for tensor in _tensors(output)):
            raise ValueError(_NO_CHAIN.format(name=self.name))

    def _run_to_point(self, images: Tensor) -> Any:
        def stop(module: nn.Module, args: Any, output: Any) -> None:
            raise _Reached(output)

        handle = self.module.register_forward_hook(stop)
        try:
            self.encoder(images)
        except _Reached as reached:
            return reached.output
        finally:
            handle.remove()
        raise ValueError(
            f'the blocking point {self.name!r} is never reached: the encoder has such a module but '
            'its forward pass does not call it; choose another block_after'
        )

    def _vector(self, output: Any) -> Tensor:
        vectors = [
            spatial_mean(tensor, dim)
            for tensor, dim in zip(_tensors(output), self._channel_dims, strict=True)
        ]
        return vectors[0] if len(vectors) == 1 else torch.cat(vectors, dim=1)


_NO_CHAIN = (
    "strategy='single_pass' needs an encoder that is a chain of stages; behind {name!r} this one "
    "still reads what came before it. Use strategy='two_pass', which works with every encoder"
)


def _submodule(encoder: nn.Module, name: str) -> nn.Module:
    names = [known for known, _ in encoder.named_modules() if known]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3)
        hint = (
            f'did you mean {" or ".join(map(repr, near))}?'
            if near
            else (f'its children are {", ".join(n for n, _ in encoder.named_children())}')
        )
        raise ValueError(f'the encoder has no module {name!r} to block after; {hint}')
    return encoder.get_submodule(name)


def _zeros(encoder: nn.Module, num: int, input_shape: tuple[int, int, int]) -> Tensor:
    parameter = next(encoder.parameters())
    return torch.zeros(num, *input_shape, device=parameter.device, dtype=parameter.dtype)


def _channel_dim(tensor: Tensor, ratio: int) -> int:
    """The dimension of a one-image output that is neither the batch nor space."""
    _, *shape = tensor.shape
    if len(shape) == 2:
        return -1
    if len(shape) == 3 and shape[1] == ratio * shape[0] and shape[2] != ratio * shape[1]:
        return -1
    return 1


def _tensors(output: Any) -> list[Tensor]:
    """The floating-point tensors with a batch dimension and channels in a nested output."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() and output.ndim > 1 else []
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, (tuple, list)):
        return [tensor for item in output for tensor in _tensors(item)]
    return []


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
