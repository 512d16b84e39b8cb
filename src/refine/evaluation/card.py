"""The evaluation card: under which rules a number was measured.

Two recommenders can be compared only where the same users were scored on the same held-out items
among the same candidates. The card travels with every number, and whatever puts numbers side by
side calls ``require_same_card`` first.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:  # so that printing a table need not load PyTorch
    from refine.evaluation.ranking import Ranking

Card: TypeAlias = dict[str, Any]

RATED = "rated"
TRAIN_POSITIVES = "train_positives"
MASKS = {
    RATED: "every train rating of a user is masked, liked or not",
    TRAIN_POSITIVES: "train ratings of 4 and 5 are masked, low ones can be recommended",
}
"""The mask policies: which items a user cannot be recommended, since they were seen before."""

TIE_RULE = "higher score first, then lower item code"

CARD_METADATA = b"card"
"""Key of the card, as JSON, in the Parquet metadata of users.parquet."""

MODEL_METADATA = b"model"
"""Key of the model's name there."""

FULL_RANKING = "all items that are not masked"


class CardError(ValueError):
    """Numbers that were measured under different rules."""


def evaluation_card(
    ranking: "Ranking", *, mask: str, mask_validation: bool, n_users: int, split_digest: str
) -> Card:
    """The card of one evaluation.

    Args:
        ranking: what was ranked and scored.
        mask: one of MASKS.
        mask_validation: whether validation positives were masked as well.
        n_users: number of users, with and without a held-out positive.
        split_digest: digest of the train, validation and test ratings.
    """
    n_scored = len(ranking.scored_users)
    return {
        "mask": mask,
        "mask_validation": mask_validation,
        "k": list(ranking.ks),
        "users_scored": n_scored,
        "users_skipped": n_users - n_scored,
        "targets": int(ranking.n_targets.sum()),
        "candidate_items": ranking.n_items,
        "candidates": FULL_RANKING,
        "tie_rule": TIE_RULE,
        "split_digest": split_digest,
    }


def require_same_card(cards: Mapping[str, Card]) -> Card:
    """The one card that all numbers share.

    Args:
        cards: each number's card, by the name under which the reader knows it.

    Raises:
        CardError: they differ; names the fields and the values.
    """
    if not cards:
        raise CardError("there are no numbers to compare")
    first_name, first = next(iter(cards.items()))
    for name, card in cards.items():
        fields = dict.fromkeys([*first, *card])
        differing = [
            f"  {field}: {json.dumps(first.get(field))} in {first_name}, "
            f"{json.dumps(card.get(field))} in {name}"
            for field in fields
            if first.get(field) != card.get(field)
        ]
        if differing:
            raise CardError(
                "\n".join(
                    [
                        "These numbers were measured under different rules and cannot be put side "
                        "by side. Their evaluation cards differ:",
                        *differing,
                        "Evaluate both with the same split and the same `evaluation` settings.",
                    ]
                )
            )
    return first
