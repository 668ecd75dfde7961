"""The schedule, the log, the record and the checks before training. Never touches features."""

from .agreement_hook import AgreementHook
from .budget_hook import BudgetHook
from .channels_last_hook import ChannelsLastHook
from .pfb_hook import PFBHook
from .pfb_log_hook import PFBLogHook
from .pfb_record_hook import PFBRecordHook

__all__ = [
    'AgreementHook',
    'BudgetHook',
    'ChannelsLastHook',
    'PFBHook',
    'PFBLogHook',
    'PFBRecordHook',
]
