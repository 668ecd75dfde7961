"""What makes a model with an encoder and a loss one that blocks images, whatever its task."""

from .candidates import HostCandidates
from .exits import Exit
from .mixin import PartialForwardBlocking, PFBMixin
from .task import TASKS, Task, task_of

__all__ = [
    'TASKS',
    'Exit',
    'HostCandidates',
    'PFBMixin',
    'PartialForwardBlocking',
    'Task',
    'task_of',
]
