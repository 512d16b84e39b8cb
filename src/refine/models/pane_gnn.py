"""PANE-GNN: Unifying Positive and Negative Edges in Graph Neural Networks (Liu et al., 2023).

arXiv 2306.04095. Interest is learnt as in SiReN; disinterest, beside it, over the graph of
dislikes. A contrast between this graph and a thinned copy of it makes single dislikes count for
less. Interest ranks the items; those of much disinterest are left out. Losses and defaults are
those of the code that its first author has released.
"""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from refine.data import Pairs, TrainingData
from refine.graph import BipartiteGraph, Graph, row_starts
from refine.models.adam import Adam
from refine.models.base import Scorer, bounded, inner_product_scorer
from refine.models.fusion import MLP, AttentionFusion
from refine.models.signed import (
    SignedBatch,
    SignedHyperparameters,
    SignedRecommender,
    sign_aware_loss,
    signed_scores,
    user_and_item_table,
)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PANEGNNHyperparameters(SignedHyperparameters):
    """Hyperparameters of PANE-GNN; the defaults are the release's for MovieLens 1M.

    Attributes:
        dimension: of the embeddings.
        layers: L, the number of convolutions.
        temperature: tau of the contrast.
        drop_rate: share of the edges that the thinned graph lacks; each direction of an edge is
            dropped on its own.
        filter_above: items of a higher disinterest are not recommended; null: all may be.
        average_disinterest: as released, the ranking by disinterest is averaged over the batch
            whereas that by interest is summed up; False: both are summed up.
        whole_batch_contrast: as released, a node is contrasted with all pairs of nodes of the
            batch; False: with its own pairs alone.
    """

    learning_rate: float = bounded(5e-4, exclusiveMinimum=0)
    regularisation: float = bounded(0.05, minimum=0)
    dimension: int = bounded(64, minimum=1)
    layers: int = bounded(4, minimum=0)
    temperature: float = bounded(0.8, exclusiveMinimum=0)
    drop_rate: float = bounded(0.8, minimum=0, maximum=1)
    filter_above: float | None = 0.5
    average_disinterest: bool = True
    whole_batch_contrast: bool = True


class PANEGNN(SignedRecommender):
    """Embeddings of what users are interested in, and of what they are not."""

    hyperparameter_type = PANEGNNHyperparameters
    hyperparameters: PANEGNNHyperparameters
    thinning_seed: Tensor

    def __init__(
        self,
        data: TrainingData,
        hyperparameters: PANEGNNHyperparameters,
        generator: torch.Generator,
    ) -> None:
        super().__init__(data, hyperparameters, generator)
        self.likes = BipartiteGraph(data.positives, data.n_users, data.n_items)
        self.dislikes = BipartiteGraph(data.confirmed, data.n_users, data.n_items)

        dimension = hyperparameters.dimension
        self.interest = user_and_item_table(data.n_users, data.n_items, dimension, generator)
        self.disinterest = user_and_item_table(data.n_users, data.n_items, dimension, generator)
        self.mlp = MLP(self.likes.n_nodes, dimension, generator)
        self.fusion = AttentionFusion(dimension, generator)
        self._edges = data.confirmed
        # The graph of one training is always the same: the seed goes with the parameters.
        seed = torch.randint(2**63 - 1, (), generator=generator, device=data.device)
        self.register_buffer("thinning_seed", seed)
        self.register_load_state_dict_post_hook(  # type: ignore[no-untyped-call]
            PANEGNN._loaded
        )
        self._thin()
        self._filter_to_tell = False

    def _loaded(self, *_: object) -> None:
        """Called when a state has been loaded."""
        self._thin()
        self._filter_to_tell = True

    def _thin(self) -> None:
        """Draws the thinned graph."""
        generator = torch.Generator(self.thinning_seed.device)
        self.thinned = thinned_graph(
            self._edges,
            self.likes.n_users,
            self.likes.n_items,
            self.hyperparameters.drop_rate,
            generator.manual_seed(int(self.thinning_seed)),
        )

    def interests(self, generator: torch.Generator | None) -> Tensor:
        """Z_p: propagated over the graph of likes, and mixed with the perceptron's; [nodes, d].

        Args:
            generator: draws the dropout; None: not in training, there is none.
        """
        propagated = self.likes.propagate(self.interest, self.hyperparameters.layers)
        fused: Tensor = self.fusion(propagated, self.mlp(generator), generator)
        return fused

    def disinterests(self, graph: Graph) -> Tensor:
        """Z_n over the graph of dislikes, or Z_n' over the thinned one; [nodes, d]."""
        return graph.propagate(self.disinterest, self.hyperparameters.layers)

    def loss(self, batch: SignedBatch) -> Tensor:
        """The sum, unweighted, of the following for a batch of b pairs.

        - Ranking by interest: the sum of -ln sigmoid(c y_ui - y_uj) over the pairs and their
          unrated items j, where c is 1 for a like and 3 for a dislike.
        - Ranking by disinterest, which puts rated items last: 1 / b times the sum of
          -ln sigmoid(y_uj - c y_ui), where c is 3 for a like and 1 for a dislike.
        - lambda times the squared norms of all these rows of Z_p and Z_n.
        - Contrast: how badly the batch's users and items are told apart by Z_n and Z_n'.
        """
        parameters, n_users = self.hyperparameters, self.likes.n_users
        generator = torch.Generator(self.interest.device).manual_seed(batch.seed)
        disinterests = self.disinterests(self.dislikes)
        liking = signed_scores(self.interests(generator), n_users, batch)
        disliking = signed_scores(disinterests, n_users, batch)
        by_interest = sign_aware_loss(liking.rated, liking.negatives, 2 - batch.signs)
        by_disinterest = sign_aware_loss(-disliking.rated, -disliking.negatives, 2 + batch.signs)
        if parameters.average_disinterest:
            by_disinterest = by_disinterest / len(batch.users)
        norms = liking.squared_norm + disliking.squared_norm
        nodes = torch.stack([batch.users, n_users + batch.items])
        contrast = contrastive_loss(
            F.embedding(nodes, disinterests),
            F.embedding(nodes, self.disinterests(self.thinned)),
            parameters.temperature,
            whole_batch=parameters.whole_batch_contrast,
        )
        return by_interest + by_disinterest + parameters.regularisation * norms + contrast

    def optimiser(self) -> Adam:
        """Adam."""
        return Adam(self.parameters(), self.hyperparameters.learning_rate)

    @torch.no_grad()
    def scorer(self) -> Scorer:
        """Interest: inner products in Z_p; -inf if that in Z_n is above the filter's threshold."""
        n_users, above = self.likes.n_users, self.hyperparameters.filter_above
        wanted = inner_product_scorer(self.interests(None), n_users)
        if above is None:
            return wanted
        unwanted = inner_product_scorer(self.disinterests(self.dislikes), n_users)
        if self._filter_to_tell:  # of what was trained: in its first epochs a model filters nothing
            self._filter_to_tell = False
            users = torch.arange(n_users, device=self.interest.device)
            removed = sum((unwanted(block) > above).sum() for block in torch.split(users, 1024))
            _logger.info(
                "the filter (disinterest above %g) removes %.1f of %d items a user on average",
                above,
                float(removed) / n_users,
                self.likes.n_items,
            )
        return lambda block: wanted(block).masked_fill_(unwanted(block) > above, -torch.inf)

    @torch.no_grad()
    def item_embeddings(self) -> Tensor:
        """The items' rows of Z_p."""
        return self.interests(None)[self.likes.n_users :]


def contrastive_loss(
    first: Tensor, second: Tensor, temperature: float, *, whole_batch: bool
) -> Tensor:
    """Mean over b of ln(T / (F_0[b, b] + F_1[b, b])), F_v = exp(cosines of a view v / temperature).

    Args:
        first: embeddings of the batch's users (v = 0) and items (v = 1), [2, b, d].
        second: the same by the thinned graph, [2, b, d].
        temperature: tau.
        whole_batch: T is the sum of all entries of F_0 and F_1; False: of their rows b.
    """
    first, second = F.normalize(first, dim=2) / temperature, F.normalize(second, dim=2)
    own = torch.linalg.vecdot(first, second).logsumexp(0)
    logarithms = first @ second.transpose(1, 2)
    # As logsumexp, but in place: these matrices would be half of a step otherwise.
    summed = (0, 1, 2) if whole_batch else (0, 2)
    highest = logarithms.detach().amax(summed, keepdim=True)
    total = logarithms.sub_(highest).exp_().sum(summed).log() + highest.flatten()
    loss: Tensor = (total - own).mean()
    return loss


def thinned_graph(
    edges: Pairs, n_users: int, n_items: int, drop_rate: float, generator: torch.Generator
) -> Graph:
    """A graph that lacks some directions of the edges, hence is not symmetric.

    As released, a -> b weighs 1 / sqrt(in(a) in(b)), where in() counts what is left of the edges
    into a node; 0 if nothing is.

    Args:
        edges: distinct pairs.
        n_users: number of users.
        n_items: number of items.
        drop_rate: probability that one direction of an edge is dropped.
        generator: draws which are.
    """
    users, items, n_nodes = edges.users.long(), n_users + edges.items.long(), n_users + n_items
    sources, targets = torch.cat([users, items]), torch.cat([items, users])
    kept = torch.rand(len(sources), generator=generator, device=users.device) >= drop_rate
    sources, targets = sources[kept], targets[kept]
    incoming = torch.bincount(targets, minlength=n_nodes)
    scale = torch.where(incoming > 0, incoming.double().rsqrt(), 0.0)
    weights = (scale[sources] * scale[targets]).to(torch.get_default_dtype())

    def rows_of(rows: Tensor, columns: Tensor, transposed: Graph | None = None) -> Graph:
        rows, order = rows.sort(stable=True)
        return Graph(row_starts(rows, n_nodes), columns[order], weights[order], transposed)

    return rows_of(targets, sources, transposed=rows_of(sources, targets))
