"""What makes an image worth the rest of the step. One module for each idea; torch alone."""

from .rare import Common, Rare  # isort: skip  the paper's comes first where they are listed
from .divbs import DivBS
from .losses import Hard, LossTopK
from .random import Random

__all__ = ['Common', 'DivBS', 'Hard', 'LossTopK', 'Random', 'Rare']
