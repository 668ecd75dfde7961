"""The schedule, the log and the checks before training. Never touches features."""

from .agreement_hook import AgreementHook
from .budget_hook import BudgetHook
from .pfb_hook import PFBHook

__all__ = ['AgreementHook', 'BudgetHook', 'PFBHook']
