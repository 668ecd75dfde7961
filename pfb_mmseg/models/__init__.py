"""What makes a model with an encoder and a loss one that blocks images, whatever its task."""

from . import classification, segmentation  # noqa: F401  tell what their kinds of models have
from .exits import Exit
from .mixin import PFBMixin
from .pfb import PartialForwardBlocking
from .task import TASKS, Task, task_of

__all__ = ['TASKS', 'Exit', 'PFBMixin', 'PartialForwardBlocking', 'Task', 'task_of']
