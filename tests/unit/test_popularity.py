import numpy as np
import torch
from training_data import UNRATED, data_of

from refine.artifacts import CONFIRMED, FALSELY_IDENTIFIED, LABELS, POSITIVE, UNDECIDED
from refine.models.base import ModelHyperparameters
from refine.models.popularity import Popularity


def test_everybody_gets_the_items_by_how_many_users_like_them() -> None:
    likes, recovered, dislikes, undecided = (
        LABELS.index(label) for label in (POSITIVE, FALSELY_IDENTIFIED, CONFIRMED, UNDECIDED)
    )
    labels = np.array(
        [
            [likes, dislikes, UNRATED, likes, UNRATED],
            [recovered, undecided, UNRATED, UNRATED, UNRATED],
            [recovered, dislikes, UNRATED, dislikes, undecided],
        ]
    )
    model = Popularity(data_of(labels), ModelHyperparameters(), torch.Generator())
    model.fit()
    assert model.scorer()(torch.tensor([0, 2])).tolist() == [[3, 0, 0, 1, 0]] * 2
    assert {name: tensor.dtype for name, tensor in model.state_dict().items()} == {
        "likes": torch.float32
    }
