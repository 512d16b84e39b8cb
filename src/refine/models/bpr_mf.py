"""Matrix factorisation learned by BPR (Rendle et al., UAI 2009)."""

from dataclasses import dataclass

from refine.models.base import bounded
from refine.models.lightgcn import LightGCN, LightGCNHyperparameters


@dataclass(frozen=True)
class MatrixFactorisationHyperparameters(LightGCNHyperparameters):
    """Those of LightGCN, without a choice of layers."""

    layers: int = bounded(0, minimum=0, maximum=0)


class MatrixFactorisation(LightGCN):
    """LightGCN without convolution: a score is the inner product of the embeddings themselves.

    Loss, initialisation and epochs are LightGCN's too, so that what convolution is worth shows.
    """

    hyperparameter_type = MatrixFactorisationHyperparameters
    hyperparameters: MatrixFactorisationHyperparameters
