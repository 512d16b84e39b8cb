"""Candidates judged a second: vLLM as the pipeline runs it, beside one prompt at a time.

Both judge the same prompts with the same base model on the same machine, greedily, and take turns:
ours with the prompts of some users, then the reference with a sample of these. Speeds are medians
over the turns.

* ours: `refine.feedback.llm.vllm`, all prompts at once, answers held to their form;
* reference: ``generate`` of transformers, one prompt at a time, as the paper's authors ran it. Like
  ours it may take as many tokens as the longest answer needs; a model that completes text seldom
  ends before. A second figure has it stop, as if by magic, after as many tokens as ours has taken.
  Where candidates are scored it computes the prompt alone.

Needs vLLM (`make llm`)::

    python benchmarks/refine.py --dataset ml100k --mirror path/to/mirror
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

import polars as pl
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/llm"))

from tiny_model import save_tiny_model

from refine.config import load, settings
from refine.datasets.readers import read
from refine.datasets.sources import fetch
from refine.feedback.identity import prompt_settings
from refine.feedback.llm.engine import Reply, Request
from refine.feedback.llm.requests import RequestMaker, read_form
from refine.feedback.llm.vllm import start
from refine.feedback.parsing import answer_room
from refine.feedback.prompts import write_prompts
from refine.feedback.tokens import PromptTokenizer
from refine.splits.split import split_dataset

ROOT = Path(__file__).resolve().parents[1]
CONFIG = load(ROOT / "config/config.yaml")


def split(dataset: str, mirror: str | None, folder: Path) -> None:
    """Writes a dataset's split as the pipeline does."""
    entry, sections = CONFIG["datasets"][dataset], settings(CONFIG, dataset)
    fetch(dataset, entry["sources"], folder / "fetched", mirror)
    interactions, items = folder / "interactions.parquet", folder / "items.parquet"
    read(
        folder / "fetched/source.json",
        interactions,
        items,
        folder / "reading.json",
        reading=sections["reading"],
        digest=entry.get("digest"),
    )
    options = {"subset": sections["subset"], "split": sections["split"], "published": None}
    split_dataset(interactions, items, folder / "split", **options)


def prompts(dataset: str, judge: dict[str, Any], folder: Path) -> list[Request]:
    """What the pipeline asks a judge about a dataset."""
    wording = settings(CONFIG, dataset)["prompts"]
    by = "score" if judge["strategy"] == "score" else wording["answer"]
    tables = [folder / f"split/{name}.parquet" for name in ("train", "users", "items")]
    path = folder / "prompts.parquet"
    write_prompts(
        *tables,
        ROOT / wording["templates"][by],
        path,
        prompts=wording,
        judge=prompt_settings(judge),
        dataset=dataset,
    )
    return list(RequestMaker(read_form(path), tables[2]).requests(pl.read_parquet(path)))


def whole(request: Request) -> str:
    """The prompt, as a base model completes it."""
    return "\n\n".join((request.instructions, request.context, request.question))


def candidates(requests: Sequence[Request]) -> int:
    """How many candidates the requests are about."""
    return sum(len(request.choices or (None,)) for request in requests)


def turns(requests: Sequence[Request], n: int) -> Iterator[list[Request]]:
    """Cuts the requests in n parts; a user's, which share most of their text, are all in one."""
    users = [list(group) for _, group in groupby(requests, lambda request: request.context)]
    for turn in range(n):
        of_turn = users[turn * len(users) // n : (turn + 1) * len(users) // n]
        yield [request for user in of_turn for request in user]


class Reference:
    """One prompt at a time, by transformers."""

    def __init__(self, model: Path) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = "auto" if self.device.type == "cuda" else torch.float32
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).to(self.device)
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.word_ids = PromptTokenizer(self.tokenizer, str(model)).word_ids

    @torch.inference_mode()
    def answer(self, request: Request, least: int, most: int) -> None:
        """Goes on from a prompt by so many tokens."""
        inputs = self.tokenizer(whole(request), return_tensors="pt").to(self.device)
        self.model.generate(**inputs, do_sample=False, min_new_tokens=least, max_new_tokens=most)

    @torch.inference_mode()
    def score(self, request: Request, ids: tuple[int, int]) -> float:
        """The log-odds of two words after a prompt."""
        inputs = self.tokenizer(whole(request), return_tensors="pt").to(self.device)
        scores = self.model(**inputs, logits_to_keep=1).logits[0, -1]
        return float(scores[ids[0]] - scores[ids[1]])

    def ways(
        self, replies: dict[str, Reply], first: Request
    ) -> dict[str, Callable[[Request], Any]]:
        """What is done with a prompt, for each figure; scores are compared with ours."""
        if first.words is None:
            return {
                "reference": lambda r: self.answer(r, 1, answer_room(r.choices)),
                "stopped": lambda r: self.answer(r, *[replies[r.key].answer_tokens or 0] * 2),
            }
        ids = self.word_ids(first.question, first.words)

        def compare(request: Request) -> None:
            difference = self.score(request, ids) - (replies[request.key].log_odds or 0)
            assert abs(difference) < 1e-3 or self.device.type != "cpu", difference

        return {"reference": compare}

    def speed(self, way: Callable[[Request], Any], requests: Sequence[Request]) -> float:
        """Candidates a second."""
        begun = time.perf_counter()
        for request in requests:
            way(request)
        return candidates(requests) / (time.perf_counter() - begun)


def measure(
    judge: dict[str, Any], requests: list[Request], n_turns: int, sample: int
) -> dict[str, Any]:
    """The figures of one strategy.

    Args:
        judge: of kind vllm.
        requests: all of them, a user's next to each other.
        n_turns: how often each gets its turn.
        sample: how many prompts the reference answers in each.
    """
    reference = Reference(judge["model"])
    speeds: dict[str, list[float]] = {"ours": []}
    tokens = reused = 0
    begun = time.perf_counter()
    with start(judge) as engine:
        started = time.perf_counter() - begun
        for part in turns(requests, n_turns):
            begun = time.perf_counter()
            replies = {reply.key: reply for reply in engine.ask(part)}
            speeds["ours"].append(candidates(part) / (time.perf_counter() - begun))
            assert not any(reply.error for reply in replies.values())
            tokens += sum(reply.prompt_tokens or 0 for reply in replies.values())
            reused += sum(reply.cached_tokens or 0 for reply in replies.values())
            sampled = part[:: max(1, len(part) // sample)][:sample]
            for name, way in reference.ways(replies, part[0]).items():
                way(part[0])  # once to warm up
                speeds.setdefault(name, []).append(reference.speed(way, sampled))
    result = {
        "engine": f"vLLM {engine.facts['version']}, {engine.facts['dtype']}",
        "prompts": len(requests),
        "candidates": candidates(requests),
        "tokens_a_prompt": tokens / len(requests),
        "reused": reused / tokens,
        "start_seconds": started,
        "candidates_a_second": {name: median(values) for name, values in speeds.items()},
    }
    ours = result["candidates_a_second"]["ours"]
    speedup = {name: ours / speed for name, speed in result["candidates_a_second"].items()}
    return result | {"speedup": speedup}


def table(figures: dict[str, dict[str, Any]]) -> str:
    """The figures in Markdown."""
    rows = [
        "| strategy | prompts | tokens each | reused | ours, candidates/s | one at a time | ratio "
        "| stopped in time | ratio |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for strategy, row in figures.items():
        speed, speedup = row["candidates_a_second"], row["speedup"]
        cells = [
            f"`{strategy}`",
            f"{row['prompts']:,}",
            f"{row['tokens_a_prompt']:,.0f}",
            f"{row['reused']:.0%}",
            f"{speed['ours']:,.0f}",
        ]
        for name in ("reference", "stopped"):
            cells += [f"{speed[name]:.1f}", f"{speedup[name]:.1f}"] if name in speed else ["", ""]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    """Measures, prints a table, and writes the figures where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="demo", help="of the configuration")
    parser.add_argument("--mirror", help="folder with the raw files of a real dataset")
    parser.add_argument("--model", help="folder of a base model; a tiny one without")
    parser.add_argument("--engine", default="{}", help="arguments of vLLM, as JSON")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--sample", type=int, default=50, help="reference prompts a turn")
    parser.add_argument("--threads", type=int, default=1, help="of the reference on CPU")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    # On CPU the pipeline has the engine in the worker's process, which starts sooner; a process of
    # its own, as on GPUs, is faster once it runs.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    figures = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        split(arguments.dataset, arguments.mirror, folder)
        model = arguments.model
        if model is None:
            # Its tokenizer learns from the prompts: they are then about as long as to a real one.
            texts = prompts(arguments.dataset, {"kind": "profile", "strategy": "select"}, folder)
            model = str(save_tiny_model(folder / "tiny", texts=list(map(whole, texts[::5]))))
        own = {"model": model, "revision": None, "engine": json.loads(arguments.engine)}
        for strategy in ("select", "score"):
            judge = CONFIG["judges"]["vllm"] | own | {"strategy": strategy}
            requests = prompts(arguments.dataset, judge, folder)
            figures[strategy] = measure(judge, requests, arguments.turns, arguments.sample)
    print(f"{arguments.dataset}, {figures['select']['engine']}\n\n{table(figures)}")
    if arguments.json is not None:
        result = {"dataset": arguments.dataset, "threads": arguments.threads, **figures}
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
