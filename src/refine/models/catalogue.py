"""The models by name. Standard library only, so that a dry run can look them up.

They are named here, not imported, and loaded when they are built: an edit to one model then does
not make what another has learnt look outdated. What depends on a model's code has to digest
`module_of` beside the code that it imports.
"""

TRAINED = {
    "lightgcn": "refine.models.lightgcn:LightGCN",
    "bpr-mf": "refine.models.bpr_mf:MatrixFactorisation",
    "siren": "refine.models.siren:SiReN",
    "pane-gnn": "refine.models.pane_gnn:PANEGNN",
    "sigrec": "refine.models.sigrec:SiGRec",
    "lsgrec": "refine.models.lsgrec:LSGRec",
    "sigformer": "refine.models.sigformer:SIGformer",
    "refine++": "refine.models.refine_pp:ReFINePP",
}
"""Module and class of each model that is trained by gradient steps."""

FITTED = {
    "popularity": "refine.models.popularity:Popularity",
    "item-knn": "refine.models.item_knn:ItemKNN",
    "ease": "refine.models.ease:EASE",
}
"""Of each model that is computed from the data at once, the same whatever the seed."""

MODELS = TRAINED | FITTED
"""Every model that ``model.name`` may name."""

REWEIGHTED = frozenset({"lightgcn", "bpr-mf"})
"""Models whose negatives are drawn by the weights of Re-Weighted BPR; others draw their own."""

RECONSTRUCTIONS = frozenset({"sigrec"})
"""Models of which neither equations nor code are public: ours is what we take them to be."""


def module_of(name: str) -> str:
    """The dotted name of a model's module."""
    return MODELS[name].partition(":")[0]


def label(name: str) -> str:
    """A model's name as it stands beside its numbers."""
    return f"{name} (a reconstruction)" if name in RECONSTRUCTIONS else name
