"""Which items each user cannot be recommended, since they were seen before."""

import torch

from refine.artifacts import POSITIVE_RATING
from refine.data import Pairs, TrainingData
from refine.evaluation.card import MASKS, TRAIN_POSITIVES


def masked_pairs(data: TrainingData, mask: str, *, mask_validation: bool) -> Pairs:
    """The pairs that must not be recommended.

    The policies look at ratings, never at labels: experiments whose judges disagree are ranked
    over the same candidates.

    Args:
        data: the train ratings and the validation positives.
        mask: one of ``card.MASKS``.
        mask_validation: masks the validation positives as well.

    Raises:
        ValueError: no such policy.
    """
    if mask not in MASKS:
        raise ValueError(f"evaluation.mask: no policy {mask!r}; there are {', '.join(MASKS)}")
    masked = data.rated
    if mask == TRAIN_POSITIVES:
        masked = masked.where(data.ratings >= POSITIVE_RATING)
    if not mask_validation:
        return masked
    return Pairs(*(torch.cat(codes) for codes in zip(masked, data.validation, strict=True)))
