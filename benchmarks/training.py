"""Times a training step, sampling included, beside PyTorch Geometric's LightGCN.

Both train LightGCN (4 layers, 64 dimensions) with Re-Weighted BPR on batches of 1,024 positives:

* ours: propagation in CSR, negatives of an epoch drawn at once;
* reference: PyG's ``LightGCN`` on the edge list, a ``torch.multinomial`` over the dense rows of
  weights for each batch.

Needs torch, torch-geometric, numpy and pyarrow::

    python benchmarks/training.py --dataset ml100k --mirror path/to/mirror
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch_geometric.nn import LightGCN as PyGLightGCN

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from refine.artifacts import CONFIRMED, LABELS, POSITIVE, POSITIVE_RATING
from refine.data import Pairs, TrainingData
from refine.models.lightgcn import LightGCN, LightGCNHyperparameters
from refine.sampling import NegativeSampler, SamplingSettings

PARAMETERS = LightGCNHyperparameters()
FILES = {"ml100k": ("u.data", 0), "ml1m": ("ml-1m.inter", 1)}  # name, lines of its header


def read_ratings(dataset: str, mirror: Path) -> np.ndarray:
    """Ratings of a dataset's raw file: user, item, rating; float64 [ratings, 3]."""
    name, header = FILES[dataset]
    path = mirror / dataset / name
    return np.loadtxt(path, skiprows=header, usecols=(0, 1, 2), delimiter="\t")


def generate_ratings(seed: int, users: int = 2000, items: int = 1500) -> np.ndarray:
    """Ratings of a small set whose popularity falls off as in real ones; float64 [ratings, 3]."""
    rng = np.random.default_rng(seed)
    popularity = 1 / np.arange(10, items + 10)
    rated = rng.random((users, items)) < np.minimum(popularity / popularity.mean() * 0.05, 0.8)
    rated[np.arange(users), rng.integers(0, items, users)] = True
    user, item = np.nonzero(rated)
    return np.column_stack([user, item, rng.choice([1, 2, 3, 4, 5], len(user))]).astype(float)


def training_data(ratings: np.ndarray, device: torch.device) -> TrainingData:
    """All ratings, the high ones positive and the low ones confirmed negatives."""
    users, items = (np.unique(ratings[:, c], return_inverse=True)[1] for c in (0, 1))
    order = np.lexsort((items, users))
    users, items, stars = users[order], items[order], ratings[order, 2]
    labels = np.where(stars >= POSITIVE_RATING, LABELS.index(POSITIVE), LABELS.index(CONFIRMED))
    pairs = Pairs(*(torch.from_numpy(codes.astype(np.int32)) for codes in (users, items)))
    return TrainingData(
        n_users=int(users.max()) + 1,
        n_items=int(items.max()) + 1,
        rated=pairs,
        ratings=torch.from_numpy(stars.astype(np.int8)),
        labels=torch.from_numpy(labels.astype(np.int8)),
        validation=Pairs(pairs.users[:0], pairs.items[:0]),
    ).to(device)


def our_steps(data: TrainingData, model: LightGCN, seed: int) -> Iterator[torch.Tensor]:
    """Trains for ever; yields the loss after each step."""
    generator = torch.Generator(data.device).manual_seed(seed)
    negatives = NegativeSampler(data, SamplingSettings())
    optimiser = model.optimiser()
    while True:
        for batch in model.batches(negatives, generator):
            optimiser.zero_grad()
            loss = model.loss(batch)
            loss.backward()
            optimiser.step()
            yield loss.detach()


class Reference:
    """PyTorch Geometric's LightGCN, trained as its documentation shows."""

    def __init__(self, data: TrainingData, embedding: torch.Tensor) -> None:
        self.data = data
        self.model = PyGLightGCN(len(embedding), PARAMETERS.dimension, PARAMETERS.layers)
        self.model.to(data.device).embedding.weight.data.copy_(embedding)
        users, items = (codes.long() for codes in data.positives)
        nodes = items + data.n_users
        self.edge_index = torch.stack([torch.cat([users, nodes]), torch.cat([nodes, users])])

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        """The loss of users, positive and negative nodes; int64 [3, b]."""
        pairs = torch.cat([batch[[0, 1]], batch[[0, 2]]], dim=1)
        positive, negative = self.model(self.edge_index, pairs).chunk(2)
        return self.model.recommendation_loss(
            positive, negative, node_id=pairs.unique(), lambda_reg=PARAMETERS.regularisation
        )

    def steps(self, seed: int) -> Iterator[torch.Tensor]:
        """Trains for ever; yields the loss after each step."""
        generator = torch.Generator(self.data.device).manual_seed(seed)
        users, items = (codes.long() for codes in self.data.positives)
        weights = torch.ones(self.data.n_users, self.data.n_items, device=self.data.device)
        weights[users, items] = 0
        weights[tuple(codes.long() for codes in self.data.confirmed)] = SamplingSettings().confirmed
        optimiser = torch.optim.Adam(self.model.parameters(), lr=PARAMETERS.learning_rate)
        while True:
            order = torch.randperm(len(users), generator=generator, device=self.data.device)
            for chosen in order.split(PARAMETERS.batch_size):
                user = users[chosen]
                negative = torch.multinomial(weights[user], 1, generator=generator).squeeze(1)
                nodes = self.data.n_users + torch.stack([items[chosen], negative])
                optimiser.zero_grad()
                loss = self.loss(torch.cat([user[None], nodes]))
                loss.backward()
                optimiser.step()
                yield loss.detach()


def seconds(steps: Iterator[torch.Tensor], count: int, device: torch.device) -> float:
    """Seconds a step, over ``count`` of them."""
    started = time.perf_counter()
    for _ in range(count):
        next(steps)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / count


def gradient_difference(data: TrainingData, model: LightGCN, reference: Reference) -> float:
    """Largest difference of the two gradients on one batch, relative to the largest entry."""
    generator = torch.Generator(data.device).manual_seed(0)
    negatives = NegativeSampler(data, SamplingSettings())
    batch = next(iter(model.batches(negatives, generator)))
    gradients = []
    for loss, weight in (
        (model.loss(batch), model.embedding),
        (reference.loss(batch), reference.model.embedding.weight),
    ):
        loss.backward()
        gradients.append(weight.grad)
        weight.grad = None
    ours, theirs = gradients
    return float((ours - theirs).abs().max() / theirs.abs().max())


def processor(device: torch.device) -> str:
    """The name of what runs the steps."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


def measure(data: TrainingData, rounds: int, reference_steps: int, seed: int) -> dict[str, object]:
    """Times both in turns, so that a busy machine slows both down.

    Args:
        data: the training data.
        rounds: epochs of ours, and as many turns of the reference.
        reference_steps: steps of the reference in a turn.
        seed: of both.
    """
    model = LightGCN(data, PARAMETERS, torch.Generator(data.device).manual_seed(seed))
    reference = Reference(data, model.embedding.detach())
    difference = gradient_difference(data, model, reference)
    assert difference < 1e-3, f"the two do not compute the same gradient: {difference}"

    steps_an_epoch = -(-len(data.positives.users) // PARAMETERS.batch_size)
    ours, theirs = our_steps(data, model, seed), reference.steps(seed)
    times: dict[str, list[float]] = {"ours": [], "reference": [], "propagation": []}
    turns: dict[str, Callable[[], float]] = {
        "ours": lambda: seconds(ours, steps_an_epoch, data.device),
        "reference": lambda: seconds(theirs, reference_steps, data.device),
        "propagation": lambda: seconds(products(model), 20, data.device),
    }
    for turn in turns.values():  # once to warm up
        turn()
    for _ in range(rounds):
        for name, turn in turns.items():
            times[name].append(turn())
    step = {name: 1000 * median(values) for name, values in times.items()}
    return {
        "users": data.n_users,
        "items": data.n_items,
        "positives": len(data.positives.users),
        "steps_an_epoch": steps_an_epoch,
        "step_ms": step["ours"],
        "reference_step_ms": step["reference"],
        "propagation_ms": step["propagation"],
        "speedup_step": step["reference"] / step["ours"],
        "share_propagation": step["propagation"] / step["ours"],
        "gradient_difference": difference,
    }


def products(model: LightGCN) -> Iterator[torch.Tensor]:
    """The sparse products of a step alone, forward and backward, for ever."""
    x = model.embedding.detach()
    while True:
        for _ in range(2 * PARAMETERS.layers):
            y = model.graph.multiply(x)
        yield y


def main() -> None:
    """Measures, prints a table, and writes the figures where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", choices=[*FILES, "generated"], default="generated")
    parser.add_argument("--mirror", type=Path, help="folder with the raw files of ml100k and ml1m")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=5, help="epochs to time")
    parser.add_argument("--reference-steps", type=int, default=5, help="reference steps a round")
    parser.add_argument("--seed", type=int, default=2024)
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    if arguments.dataset != "generated" and arguments.mirror is None:
        parser.error(f"--dataset {arguments.dataset} needs --mirror")

    device = torch.device(arguments.device)
    if arguments.dataset == "generated":
        ratings = generate_ratings(arguments.seed)
    else:
        ratings = read_ratings(arguments.dataset, arguments.mirror)
    result = {
        "dataset": arguments.dataset,
        "machine": processor(device),
        "torch": torch.__version__,
        **measure(
            training_data(ratings, device),
            arguments.rounds,
            arguments.reference_steps,
            arguments.seed,
        ),
    }
    print(
        f"{result['dataset']}: {result['users']} users, {result['items']} items, "
        f"{result['positives']} positives, batches of {PARAMETERS.batch_size}; "
        f"{result['machine']}, torch {result['torch']}\n\n"
        "| step | ms | ratio |\n|---|---:|---:|\n"
        f"| PyG LightGCN, edge list, multinomial a batch | {result['reference_step_ms']:.2f} "
        f"| {result['speedup_step']:.1f} |\n"
        f"| ours, sampling included | {result['step_ms']:.2f} | 1.0 |\n"
        f"| of it: the {2 * PARAMETERS.layers} sparse products | {result['propagation_ms']:.2f} "
        f"| {result['share_propagation']:.2f} |"
    )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
