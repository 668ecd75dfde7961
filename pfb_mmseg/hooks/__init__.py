"""The schedule, the log and the checks before training. Never touches features."""

from .budget_hook import BudgetHook
from .pfb_hook import PFBHook

__all__ = ['BudgetHook', 'PFBHook']
