"""Setting methods side by side: the rivals of PFB, the rows of a comparison and its runs."""

from .budget_hook import BudgetHook
from .infobatch import InfoBatchHook, InfoBatchSampler

__all__ = ['BudgetHook', 'InfoBatchHook', 'InfoBatchSampler']
