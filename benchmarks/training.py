"""Times a training step, part by part, beside the hardware's floor and PyTorch Geometric.

All train LightGCN (4 layers, 64 dimensions) with Re-Weighted BPR on batches of 1,024 positives:

* ours: the code that the pipeline runs;
* reference: PyG's ``LightGCN`` on the edge list, a ``torch.multinomial`` over the dense rows of
  weights for each batch, evaluation on the dense table of scores.

The floor is what the machine would need if it only moved the bytes, or only did the arithmetic, of
a step, at the rates it reaches in a copy and in a matrix product.

Needs torch, torch-geometric, numpy and pyarrow::

    python benchmarks/training.py --dataset ml1m --mirror path/to/mirror [--device cuda]
"""

import argparse
import json
import platform
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch_geometric.nn import LightGCN as PyGLightGCN

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from refine.artifacts import CONFIRMED, LABELS, POSITIVE, POSITIVE_RATING
from refine.data import Pairs, TrainingData
from refine.evaluation.ranking import RankingEvaluator
from refine.graph import BipartiteGraph
from refine.models.lightgcn import LightGCN, LightGCNHyperparameters
from refine.sampling import NegativeSampler, SamplingSettings

PARAMETERS = LightGCNHyperparameters()
PRODUCTS = 2 * PARAMETERS.layers  # a step: forward and backward
FILES = {"ml100k": ("u.data", 0), "ml1m": ("ml-1m.inter", 1)}  # name, lines of its header
SHAPES = {  # users, items, ratings
    "netflix-shape": (4803, 5575, 929_436),  # Netflix-1M of the paper
    "generated": (2000, 1500, 100_000),
}
HELD_OUT = 10  # every tenth positive is one to be found by the timed evaluation
MILLISECONDS = 1000
COPIED, MATRIX = 2**26, 2048  # numbers in an array that no cache holds; rows of a dense matrix

# ---- Data ----


def read_ratings(dataset: str, mirror: Path) -> np.ndarray:
    """Ratings of a dataset's raw file: user, item, rating; float64 [ratings, 3]."""
    name, header = FILES[dataset]
    path = mirror / dataset / name
    return np.loadtxt(path, skiprows=header, usecols=(0, 1, 2), delimiter="\t")


def generate_ratings(seed: int, users: int, items: int, ratings: int) -> np.ndarray:
    """Ratings whose users and items are as unequally busy as real ones; float64 [ratings, 3]."""
    rng = np.random.default_rng(seed)
    busy, popular = rng.lognormal(0, 1, users), 1 / np.arange(items / 50, items + items / 50) ** 0.8
    expected = busy[:, None] * popular
    low, high = 0.0, items * users / expected.sum()
    for _ in range(60):  # bisection: the factor that gives the wanted number, none above 0.8
        factor = (low + high) / 2
        too_many = np.minimum(expected * factor, 0.8).sum() > ratings
        low, high = (low, factor) if too_many else (factor, high)
    rated = rng.random((users, items)) < np.minimum(expected * high, 0.8)
    rated[np.arange(users), rng.integers(0, items, users)] = True
    user, item = np.nonzero(rated)
    stars = rng.choice([1, 2, 3, 4, 5], len(user), p=[0.05, 0.1, 0.28, 0.34, 0.23])
    return np.column_stack([user, item, stars]).astype(float)


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


def held_out(data: TrainingData) -> tuple[Pairs, Pairs]:
    """Pairs to be found, and all other rated ones, which are masked: as much work as in earnest."""
    positive = (data.labels == LABELS.index(POSITIVE)).nonzero().squeeze(1)
    found = torch.zeros(len(data.labels), dtype=torch.bool, device=data.device)
    found[positive[::HELD_OUT]] = True
    return data.rated.where(found), data.rated.where(~found)


# ---- Candidates for propagation: --operator ----


class ChunkedGraph(BipartiteGraph):
    """Sums long rows in chunks: for a device on which one worker sums up a row."""

    CHUNK = 64

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        degrees = self.row_starts.diff()
        chunks = (degrees + self.CHUNK - 1) // self.CHUNK
        zero = chunks.new_zeros(1)
        self.first_chunks = torch.cat([zero, chunks.cumsum(0).to(chunks.dtype)])
        row = torch.repeat_interleave(torch.arange(len(degrees), device=chunks.device), chunks)
        self.chunks = torch.arange(len(row), device=chunks.device, dtype=chunks.dtype)
        starts = self.row_starts[row] + (self.chunks - self.first_chunks[row]) * self.CHUNK
        self.chunk_starts = torch.cat([starts, self.row_starts[-1:]])

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """As its base."""
        options: dict[str, Any] = {"mode": "sum", "include_last_offset": True}
        sums = F.embedding_bag(
            self.columns, x, self.chunk_starts, per_sample_weights=self.weights, **options
        )
        return F.embedding_bag(self.chunks, sums, self.first_chunks, **options)


class SparseGraph(BipartiteGraph):
    """PyTorch's sparse matrix: MKL on CPU, cuSPARSE on a GPU."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        shape = (self.n_nodes, self.n_nodes)
        self.matrix = torch.sparse_csr_tensor(self.row_starts, self.columns, self.weights, shape)

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """As its base."""
        return self.matrix @ x


class DenseGraph(BipartiteGraph):
    """The whole polynomial as one dense matrix, for graphs of up to some 15,000 nodes."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        identity = torch.eye(self.n_nodes, device=self.weights.device)
        self.matrix = super().evaluate(identity, [1.0] * (PARAMETERS.layers + 1))

    def evaluate(self, x: torch.Tensor, coefficients: Any) -> torch.Tensor:
        """As its base, but for equal coefficients only."""
        return (self.matrix @ x).mul_(coefficients[0])


OPERATORS: dict[str, type[BipartiteGraph]] = {
    "rows": BipartiteGraph,
    "chunks": ChunkedGraph,
    "sparse": SparseGraph,
    "dense": DenseGraph,
}

# ---- The two ways to train ----


class Ours:
    """What the pipeline runs."""

    def __init__(self, data: TrainingData, operator: str, seed: int) -> None:
        self.generator = torch.Generator(data.device).manual_seed(seed)
        self.model = LightGCN(data, PARAMETERS, self.generator)
        self.model.graph = OPERATORS[operator](data.positives, data.n_users, data.n_items)
        self.negatives = NegativeSampler(data, SamplingSettings())
        self.optimiser = self.model.optimiser()
        targets, mask = held_out(data)
        self.evaluator = RankingEvaluator(
            mask=mask,
            targets=targets,
            n_users=data.n_users,
            n_items=data.n_items,
            ks=[20],
            device=data.device,
        )

    def batches(self) -> Iterator[torch.Tensor]:
        """Batches for ever."""
        while True:
            yield from self.model.batches(self.negatives, self.generator)

    def steps(self) -> Iterator[None]:
        """Trains for ever."""
        for batch in self.batches():
            self.optimiser.zero_grad()
            self.model.loss(batch).backward()
            self.optimiser.step()
            yield

    def gradients(self, batch: torch.Tensor) -> Iterator[None]:
        """Loss and gradient of one batch, for ever."""
        while True:
            self.optimiser.zero_grad()
            self.model.loss(batch).backward()
            yield

    def updates(self, batch: torch.Tensor) -> Iterator[None]:
        """Steps of the optimiser alone, for ever."""
        next(self.gradients(batch))
        while True:
            self.optimiser.step()
            yield

    def propagation(self) -> Iterator[None]:
        """A step's propagation, forward and backward, for ever."""
        x, ones = self.model.embedding.detach(), [1.0] * (PARAMETERS.layers + 1)
        while True:
            for _ in range(2):
                self.model.graph.evaluate(x, ones)
            yield

    def products(self) -> Iterator[None]:
        """A step's sparse products alone, for ever."""
        x = self.model.embedding.detach()
        while True:
            for _ in range(PRODUCTS):
                self.model.graph.multiply(x)
            yield

    def evaluations(self) -> Iterator[None]:
        """The validation after an epoch, for ever."""
        while True:
            self.evaluator(self.model.scorer()).means()
            yield


class Reference:
    """PyTorch Geometric's LightGCN, trained as its documentation shows."""

    def __init__(self, data: TrainingData, embedding: torch.Tensor, seed: int) -> None:
        self.data = data
        self.generator = torch.Generator(data.device).manual_seed(seed)
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

    def steps(self) -> Iterator[None]:
        """Trains for ever."""
        users, items = (codes.long() for codes in self.data.positives)
        device = self.data.device
        weights = torch.ones(self.data.n_users, self.data.n_items, device=device)
        weights[users, items] = 0
        weights[tuple(codes.long() for codes in self.data.confirmed)] = SamplingSettings().confirmed
        optimiser = torch.optim.Adam(self.model.parameters(), lr=PARAMETERS.learning_rate)
        while True:
            order = torch.randperm(len(users), generator=self.generator, device=device)
            for chosen in order.split(PARAMETERS.batch_size):
                user = users[chosen]
                drawn = torch.multinomial(weights[user], 1, generator=self.generator).squeeze(1)
                nodes = self.data.n_users + torch.stack([items[chosen], drawn])
                optimiser.zero_grad()
                self.loss(torch.cat([user[None], nodes])).backward()
                optimiser.step()
                yield

    @torch.no_grad()
    def evaluations(self) -> Iterator[None]:
        """Recall@20 from the dense table of scores, for ever."""
        targets, mask = (tuple(codes.long() for codes in pairs) for pairs in held_out(self.data))
        wanted = torch.zeros(self.data.n_users, self.data.n_items, device=self.data.device)
        wanted[targets] = 1
        while True:
            users, items = self.model.get_embedding(self.edge_index).split(
                [self.data.n_users, self.data.n_items]
            )
            scores = users @ items.T
            scores[mask] = -torch.inf
            hits = wanted.gather(1, scores.topk(20).indices).sum(1)
            float((hits / wanted.sum(1).clamp(min=1)).mean())
            yield


def gradient_difference(ours: Ours, reference: Reference) -> float:
    """Largest difference of the two gradients on one batch, relative to the largest entry."""
    batch = next(ours.batches())
    gradients = []
    for loss, weight in (
        (ours.model.loss(batch), ours.model.embedding),
        (reference.loss(batch), reference.model.embedding.weight),
    ):
        weight.grad = None
        loss.backward()
        gradients.append(weight.grad)
    one, other = gradients
    return float((one - other).abs().max() / other.abs().max())


# ---- The machine ----


def processor(device: torch.device) -> str:
    """The name of what runs the steps."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


def copies(source: torch.Tensor) -> Iterator[None]:
    """Copies for ever."""
    target = torch.empty_like(source)
    while True:
        target.copy_(source)
        yield


def matrix_products(size: int, device: torch.device) -> Iterator[None]:
    """Products of two dense square matrices, for ever."""
    a, b = torch.rand(2, size, size, device=device)
    while True:
        a @ b
        yield


def work(data: TrainingData) -> dict[str, int]:
    """Operations and bytes of a step, float32; rows that a product reads anew are counted apart."""
    nodes, d, b = data.n_users + data.n_items, PARAMETERS.dimension, PARAMETERS.batch_size
    entries, table = 2 * len(data.positives.users), 4 * nodes * d
    head = 4 * b * d  # a row's worth of each of the b triples
    return {
        # Adam: 12 operations a weight; the triples' scores and gradients: 10 a dimension.
        "operations": 2 * PRODUCTS * entries * d + 12 * nodes * d + 10 * b * d,
        # Each product reads the matrix (a column and a weight an entry) and a table, and writes
        # one; Adam reads four and writes three; rows of the triples are read and written.
        "bytes": PRODUCTS * (8 * entries + 2 * table) + 7 * table + 2 * 3 * head,
        # A product reads one row an entry: from the cache, if the table fits.
        "row_bytes": PRODUCTS * entries * 4 * d,
    }


def peak_memory(device: torch.device) -> int:
    """Bytes: of the device's memory if it is a GPU, else of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# ---- Measuring ----


def seconds(steps: Iterator[object], count: int, device: torch.device) -> float:
    """Seconds a step, over ``count`` of them."""
    started = time.perf_counter()
    for _ in range(count):
        next(steps)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / count


def measure(data: TrainingData, rounds: int, operator: str, seed: int) -> dict[str, Any]:
    """Times everything in turns, so that a busy machine slows all down.

    Args:
        data: the training data.
        rounds: turns of each.
        operator: what propagates, one of ``OPERATORS``.
        seed: of both ways to train.
    """
    device, steps_an_epoch = data.device, -(-len(data.positives.users) // PARAMETERS.batch_size)
    ours = Ours(data, operator, seed)
    seconds(ours.steps(), 5, device)
    seconds(ours.evaluations(), 1, device)
    peak = peak_memory(device)

    reference = Reference(data, ours.model.embedding.detach(), seed)
    difference = gradient_difference(ours, reference)
    assert difference < 1e-3, f"the two do not compute the same gradient: {difference}"

    batch = next(ours.batches())
    table = ours.model.embedding.detach()
    # What is timed, and how often in a turn. The batches of whole epochs, as an epoch is drawn at
    # once.
    turns: dict[str, tuple[Iterator[object], int]] = {
        "step": (ours.steps(), 10),
        "products": (ours.products(), 10),
        "propagation": (ours.propagation(), 10),
        "gradient": (ours.gradients(batch), 10),
        "optimiser": (ours.updates(batch), 10),
        "sampling": (ours.batches(), steps_an_epoch),
        "evaluation": (ours.evaluations(), 1),
        "reference_step": (reference.steps(), 1),
        "reference_evaluation": (reference.evaluations(), 1),
        "copy": (copies(torch.rand(COPIED, device=device)), 1),
        "table_copy": (copies(table), 50),
        "matrix": (matrix_products(MATRIX, device), 2),
    }
    times: dict[str, list[float]] = {name: [] for name in turns}
    for turn in range(rounds + 1):
        for name, (steps, count) in turns.items():
            taken = seconds(steps, count, device)
            if turn:  # the first is to warm up
                times[name].append(taken)
    # Other work on the machine only ever adds: the fastest turn is the least disturbed one.
    best = {name: min(values) for name, values in times.items()}
    return figures(data, best, steps_an_epoch) | {
        "gradient_difference": difference,
        "peak_memory_bytes": peak,
        "median_ms": {name: MILLISECONDS * median(values) for name, values in times.items()},
        "rounds": rounds,
    }


def figures(data: TrainingData, best: dict[str, float], steps_an_epoch: int) -> dict[str, Any]:
    """What the times, in seconds, say."""
    todo = work(data)
    copied = 2 * 4 * COPIED / best["copy"]
    table_bytes = 2 * 4 * (data.n_users + data.n_items) * PARAMETERS.dimension
    table_copied = table_bytes / best["table_copy"]
    matrix = 2 * MATRIX**3 / best["matrix"]
    floor = {
        "arithmetic": todo["operations"] / matrix,
        "memory": todo["bytes"] / copied,
    }
    epoch = best["step"] * steps_an_epoch + best["evaluation"]
    reference_epoch = best["reference_step"] * steps_an_epoch + best["reference_evaluation"]
    return {
        "users": data.n_users,
        "items": data.n_items,
        "positives": len(data.positives.users),
        "steps_an_epoch": steps_an_epoch,
        **{f"{name}_a_step": value for name, value in todo.items()},
        "copy_bytes_a_second": copied,
        "table_copy_bytes_a_second": table_copied,
        "matrix_operations_a_second": matrix,
        **{f"floor_{name}_ms": MILLISECONDS * value for name, value in floor.items()},
        # No floor, as reading alone can be faster than copying.
        "rows_ms": MILLISECONDS * todo["row_bytes"] / max(table_copied, copied),
        "step_ms": MILLISECONDS * best["step"],
        "products_ms": MILLISECONDS * best["products"],
        "propagation_ms": MILLISECONDS * best["propagation"],
        "sampling_ms": MILLISECONDS * best["sampling"],
        "loss_ms": MILLISECONDS * (best["gradient"] - best["propagation"]),
        "optimiser_ms": MILLISECONDS * best["optimiser"],
        "evaluation_ms": MILLISECONDS * best["evaluation"],
        "epoch_ms": MILLISECONDS * epoch,
        "reference_step_ms": MILLISECONDS * best["reference_step"],
        "reference_evaluation_ms": MILLISECONDS * best["reference_evaluation"],
        "reference_epoch_ms": MILLISECONDS * reference_epoch,
        "speedup_step": best["reference_step"] / best["step"],
        "speedup_epoch": reference_epoch / epoch,
        "share_propagation": best["products"] / best["step"],
        "step_of_products": best["step"] / best["products"],
        "step_of_floor": best["step"] / max(floor.values()),
    }


def table(result: dict[str, Any]) -> str:
    """The figures for people."""
    rows = [
        ("PyG LightGCN, edge list, multinomial a batch", "reference_step_ms"),
        ("ours, whole", "step_ms"),
        (f"- the {PRODUCTS} sparse products alone", "products_ms"),
        ("- propagation", "propagation_ms"),
        ("- loss and its gradient, propagation apart", "loss_ms"),
        ("- optimiser", "optimiser_ms"),
        ("- sampling, batches", "sampling_ms"),
        ("floor: arithmetic", "floor_arithmetic_ms"),
        ("floor: every array once, through memory", "floor_memory_ms"),
        ("beside it: one row an entry, as fast as a table is copied", "rows_ms"),
    ]
    lines = [
        f"{result['dataset']}: {result['users']} users, {result['items']} items, "
        f"{result['positives']} positives, {result['steps_an_epoch']} batches of "
        f"{PARAMETERS.batch_size} an epoch; {result['machine']}, torch {result['torch']}",
        "",
        f"A step is {result['operations_a_step'] / 1e6:.0f} million operations on "
        f"{result['bytes_a_step'] / 1e6:.0f} MB, and {result['row_bytes_a_step'] / 1e6:.0f} MB of "
        f"rows. The machine multiplies matrices at {result['matrix_operations_a_second'] / 1e9:.0f}"
        f" billion operations/s and copies {result['copy_bytes_a_second'] / 1e9:.1f} GB/s, tables "
        f"as large as the embeddings {result['table_copy_bytes_a_second'] / 1e9:.1f} GB/s.",
        "",
        "| a step | ms | of ours |",
        "|---|---:|---:|",
    ]
    lines += [
        f"| {text} | {result[key]:.2f} | {result[key] / result['step_ms']:.2f} |"
        for text, key in rows
    ]
    lines += [
        "",
        f"Evaluation after an epoch: {result['evaluation_ms']:.0f} ms (reference: "
        f"{result['reference_evaluation_ms']:.0f}); an epoch with it: {result['epoch_ms']:.0f} ms "
        f"({result['reference_epoch_ms']:.0f}, {result['speedup_epoch']:.0f} times as long). "
        f"Peak memory {result['peak_memory_bytes'] / 2**20:.0f} MiB.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measures, prints a table, and writes the figures where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", choices=[*FILES, *SHAPES], default="generated")
    parser.add_argument("--mirror", type=Path, help="folder with the raw files of ml100k and ml1m")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--operator", choices=list(OPERATORS), default="rows")
    parser.add_argument("--threads", type=int, help="of the CPU; by default PyTorch's default")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each that is timed")
    parser.add_argument("--seed", type=int, default=2024)
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    if arguments.dataset in FILES and arguments.mirror is None:
        parser.error(f"--dataset {arguments.dataset} needs --mirror")
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)

    device = torch.device(arguments.device)
    if arguments.dataset in FILES:
        ratings = read_ratings(arguments.dataset, arguments.mirror)
    else:
        ratings = generate_ratings(arguments.seed, *SHAPES[arguments.dataset])
    data = training_data(ratings, device)
    result = {
        "dataset": arguments.dataset,
        "operator": arguments.operator,
        "device": arguments.device,
        "threads": torch.get_num_threads(),
        "machine": processor(device),
        "torch": torch.__version__,
        **measure(data, arguments.rounds, arguments.operator, arguments.seed),
    }
    print(table(result))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
