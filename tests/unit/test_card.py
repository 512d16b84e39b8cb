"""Numbers with different evaluation cards are never put side by side."""

import pytest
import torch

from refine.data import Pairs
from refine.evaluation.card import CardError, evaluation_card, require_same_card
from refine.evaluation.ranking import RankingEvaluator


def _card(**settings: object) -> dict[str, object]:
    evaluator = RankingEvaluator(
        mask=Pairs(torch.tensor([0]), torch.tensor([0])),
        targets=Pairs(torch.tensor([0, 0, 2]), torch.tensor([1, 2, 1])),
        n_users=4,
        n_items=3,
        ks=[2, 1],
        all_users=True,
    )
    ranking = evaluator(lambda users: torch.zeros(len(users), 3))
    choices = {"mask": "rated", "mask_validation": False, "split_digest": "abc"} | settings
    return evaluation_card(ranking, n_users=4, **choices)  # type: ignore[arg-type]


def test_card_tells_who_was_scored_on_what() -> None:
    assert _card() == {
        "mask": "rated",
        "mask_validation": False,
        "k": [1, 2],
        "users_scored": 2,
        "users_skipped": 2,
        "targets": 3,
        "candidate_items": 3,
        "candidates": "all items that are not masked",
        "tie_rule": "higher score first, then lower item code",
        "split_digest": "abc",
    }


def test_equal_cards_are_one() -> None:
    assert require_same_card({"a": _card(), "b": _card(), "c": _card()}) == _card()


def test_refusal_names_every_differing_field_and_no_other() -> None:
    with pytest.raises(CardError) as error:
        require_same_card(
            {
                "ours": _card(),
                "same": _card(),
                "theirs": _card(mask="train_positives", split_digest="x"),
            }
        )
    text = str(error.value)
    assert 'mask: "rated" in ours, "train_positives" in theirs' in text
    assert 'split_digest: "abc" in ours, "x" in theirs' in text
    assert "tie_rule" not in text
    assert "mask_validation" not in text


def test_a_field_that_only_one_card_has_is_a_difference() -> None:
    smaller = _card()
    del smaller["tie_rule"]
    with pytest.raises(CardError, match="tie_rule"):
        require_same_card({"a": smaller, "b": _card()})


def test_no_numbers_no_card() -> None:
    with pytest.raises(CardError, match="no numbers"):
        require_same_card({})
