"""The sentence with which a run begins: what is blocked, and what that costs and saves."""

from __future__ import annotations

from .pfb import PartialForwardBlocking

# Share of a full step above which scoring is worth making cheaper: half of what p = 0.3 may save.
_DEAR = 0.15


def describe(pfb: PartialForwardBlocking) -> str:
    """What blocking does to its model, by operations, for the log."""
    ratio, criterion = pfb.quota.prune_ratio, pfb.pruner.criterion
    sentence = (
        f'PFB blocks {ratio:.0%} of the images behind {pfb.point.path} ({pfb.strategy}) and keeps '
        f'{criterion.keeps}'
    )
    if pfb.exit_loss_weight > 0:
        sentence += (
            f'; the loss of {pfb.exit.name} over all images trains the part in front with '
            f'weight {pfb.exit_loss_weight:g}'
        )
    if pfb.cost is None:
        return sentence
    behind = pfb.cost.share_behind
    sentence += f'. {behind:.0%} of the forward pass is still to come there'
    if pfb.strategy == 'single_pass':
        return f'{sentence}; about {ratio * behind:.0%} of a step is saved by operations'
    scoring = pfb.cost.scoring(criterion.scoring_pass, pfb.score_scale, pfb.exit_loss_weight > 0)
    if scoring == 0:
        return f'{sentence}; no image is scored, so that about {ratio:.0%} of a step is saved'
    sentence += (
        f'; looking at all images costs {scoring:.1%} of a full step by operations, so that about '
        f'{max(ratio - scoring, 0):.0%} of a step is saved'
    )
    if criterion.scoring_pass != 'whole' and scoring > _DEAR:
        scale = 'score_scale=0.5' if pfb.score_scale > 0.5 else 'a smaller score_scale'
        sentence += f', which {scale} or an earlier block_after would raise'
    return sentence
