"""Cutting a forward pass at the blocking point: behind it only the chosen images go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.hooks import RemovableHandle

from .point import BlockingPoint, feature_tensors
from .scoring import scoring_mode
from .torch_internals import in_backward, is_checkpointed


class RunsTwice(ValueError):
    """The blocking point, or what lies behind it, runs several times in a pass that is cut."""


class SinglePass:
    """Cuts forward passes of an encoder that is a chain of stages, at a blocking point."""

    def __init__(self, point: BlockingPoint) -> None:
        self._point = point
        self._recutting: RemovableHandle | None = None

    @contextmanager
    def cut(self, choose: Callable[[Any], Tensor]) -> Iterator[None]:
        """Let only the chosen images go on behind the point, in a forward pass of the encoder.

        Where that pass is recomputed in the backward pass (activation checkpointing), the same ones
        go on again.

        Args:
            choose: gets what the module returns for all N images, returns the ascending positions
                of the images that stay, (K,) int64. What the encoder returns is narrowed to them
                too, stages before this point included.

        Raises:
            RunsTwice: within the block, if the module or what lies behind it runs more than once.
        """
        point = self._point
        point.prepare()
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
                        f'{point.path} runs more than once in a step (two dates, branches or '
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
                    f'{type(point.encoder).__name__} returns several rows for each image, as '
                    "branches that share weights do, and strategy='single_pass' cannot tell which "
                    "samples they are of; use strategy='two_pass'"
                )
            return output

        cutting = point.module.register_forward_hook(at_point)
        ending = point.encoder.register_forward_hook(at_end)
        try:
            yield
        finally:
            under_way = False
            ending.remove()
            if recomputed:  # until the next cut; no backward pass of this one comes after it
                self._recutting = cutting
            else:
                cutting.remove()

    def check(self) -> None:
        """Try a cut on blank images.

        Raises:
            ValueError: see :meth:`BlockingPoint.prepare`; the rest of the encoder cannot take the
                blank image; or it still needs all the images there, as one with several branches
                does.
        """
        point = self._point
        point.prepare()
        images = point.blank_images(3)
        images += torch.arange(3, device=images.device)[:, None, None, None]
        kept = torch.tensor([0, 2], device=images.device)
        refusal = (
            "strategy='single_pass' needs an encoder that is a chain of stages; behind "
            f"{point.name!r} this one still reads what came before it. Use strategy='two_pass', "
            'which works with every encoder'
        )
        chosen = False
        untouched: list[str] = []

        def choose(output: Any) -> Tensor:
            nonlocal chosen
            chosen = True
            return kept

        def watch(module: nn.Module, args: Any, kwargs: Any) -> None:
            if chosen and any(len(tensor) == 3 for tensor in feature_tensors([args, kwargs])):
                untouched.append(type(module).__name__)

        with scoring_mode(point.encoder, batch_statistics=False):
            try:
                whole = point.encoder(images)
            except Exception as error:  # one that ends in linear layers takes one size only
                raise ValueError(point.refusal(point.input_shape, error)) from error
            handles = [
                module.register_forward_pre_hook(watch, with_kwargs=True)
                for module in point.encoder.modules()
            ]
            try:
                with self.cut(choose):
                    output = point.encoder(images)
            except Exception as error:  # whatever it is that this encoder stumbles over
                raise ValueError(refusal) from error
            finally:
                for handle in handles:
                    handle.remove()
        expected = feature_tensors(_narrow(whole, kept, 3))
        if untouched or not all(map(_close, feature_tensors(output), expected)):
            raise ValueError(refusal)


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
