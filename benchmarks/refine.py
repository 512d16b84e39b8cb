"""Candidates judged a second: vLLM as the pipeline runs it, beside one prompt at a time.

Both judge the same prompts with the same base model on the same machine, greedily, one after the
other:

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
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
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
STRATEGIES = ("select", "score")


@dataclass(frozen=True)
class Asked:
    """Requests, and how many candidates each is about."""

    requests: Sequence[Request]

    @property
    def candidates(self) -> int:
        """Of all requests."""
        return sum(len(request.choices or (None,)) for request in self.requests)


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


def prompts(dataset: str, judge: dict[str, Any], folder: Path, n: int | None) -> Asked:
    """The first prompts of a dataset's split, as the pipeline writes them for a judge."""
    wording = settings(CONFIG, dataset)["prompts"]
    by = "score" if judge["strategy"] == "score" else wording["answer"]
    tables = [folder / f"split/{name}.parquet" for name in ("train", "users", "items")]
    path = folder / f"{judge['strategy']}.parquet"
    write_prompts(
        *tables,
        ROOT / wording["templates"][by],
        path,
        prompts=wording,
        judge=prompt_settings(judge),
        dataset=dataset,
    )
    maker = RequestMaker(read_form(path), tables[2])
    return Asked(list(islice(maker.requests(pl.read_parquet(path)), n)))


def tiny_model(dataset: str, folder: Path) -> Path:
    """A tiny model to whose tokenizer the dataset's prompts are about as long as to a real one."""
    texts = prompts(dataset, {"kind": "profile", "strategy": "select"}, folder, None).requests[::5]
    return save_tiny_model(folder / "tiny", texts=[whole(request) for request in texts])


def whole(request: Request) -> str:
    """The prompt, as a base model completes it."""
    return "\n\n".join((request.instructions, request.context, request.question))


def ours(judge: dict[str, Any], asked: Asked) -> tuple[dict[str, Reply], dict[str, Any]]:
    """The replies, and how long they and the start took."""
    begun = time.perf_counter()
    with start(judge) as engine:
        ready = time.perf_counter()
        replies = {reply.key: reply for reply in engine.ask(asked.requests)}
        done = time.perf_counter()
        facts = engine.facts
    assert len(replies) == len({request.key for request in asked.requests})
    assert not any(reply.error for reply in replies.values())
    tokens = sum(reply.prompt_tokens or 0 for reply in replies.values())
    cached = sum(reply.cached_tokens or 0 for reply in replies.values())
    return replies, {
        "engine": f"vLLM {facts['version']}, {facts['dtype']}, {facts['device']}",
        "prompts": len(asked.requests),
        "tokens_a_prompt": tokens / len(replies),
        "share_cached": cached / tokens,
        "start_seconds": ready - begun,
        "seconds": done - ready,
        "candidates_a_second": asked.candidates / (done - ready),
    }


class Reference:
    """One prompt at a time."""

    def __init__(self, model: Path, threads: int) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.threads = threads
        dtype = "auto" if self.device.type == "cuda" else torch.float32
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).to(self.device)
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.words = PromptTokenizer(self.tokenizer, "the model")

    @torch.inference_mode()
    def measure(self, asked: Asked, replies: dict[str, Reply], *, stopped: bool) -> float:
        """Candidates judged a second; checks scores against ours."""
        torch.set_num_threads(self.threads)
        self.judge(asked.requests[0], replies, stopped)  # once to warm up
        begun = time.perf_counter()
        for request in asked.requests:
            self.judge(request, replies, stopped)
        return asked.candidates / (time.perf_counter() - begun)

    def judge(self, request: Request, replies: dict[str, Reply], stopped: bool) -> None:
        """Answers or scores one prompt."""
        inputs = self.tokenizer(whole(request), return_tensors="pt").to(self.device)
        reply = replies[request.key]
        if request.words is None:
            room = reply.answer_tokens if stopped else answer_room(request.choices)
            least = room if stopped else 1
            self.model.generate(
                **inputs, do_sample=False, min_new_tokens=least, max_new_tokens=room
            )
            return
        scores = self.model(**inputs, logits_to_keep=1).logits[0, -1]
        yes, no = self.words.word_ids(request.question, request.words)
        difference = abs(float(scores[yes] - scores[no]) - (reply.log_odds or 0))
        assert difference < 1e-3 or self.device.type != "cpu", difference


def measure(model: Path, dataset: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of both strategies."""
    own = {"model": str(model), "revision": None, "engine": json.loads(options.engine)}
    judge = CONFIG["judges"]["vllm"] | own
    result = {}
    for strategy in STRATEGIES:
        judge["strategy"] = strategy
        asked = prompts(dataset, judge, folder, options.prompts)
        replies, figures = ours(judge, asked)
        step = max(1, len(asked.requests) // options.reference_prompts)
        sample = Asked(asked.requests[::step][: options.reference_prompts])
        models = [Reference(model, threads) for threads in {1, os.cpu_count() or 1}]
        for name, stopped in (("reference", False), ("reference_stopped", True)):
            speed = max(one.measure(sample, replies, stopped=stopped) for one in models)
            figures[f"{name}_candidates_a_second"] = speed
            figures[f"speedup_over_{name}"] = figures["candidates_a_second"] / speed
        result[strategy] = figures
    return result


def main() -> None:
    """Measures, prints a table, and writes the figures where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="demo", help="of the configuration")
    parser.add_argument("--mirror", help="folder with the raw files of a real dataset")
    parser.add_argument("--model", type=Path, help="folder of a base model; a tiny one without")
    parser.add_argument("--engine", default="{}", help="arguments of vLLM, as JSON")
    parser.add_argument("--prompts", type=int, help="how many we answer; all without")
    parser.add_argument("--reference-prompts", type=int, default=100)
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()

    # On CPU the pipeline has the engine in the worker's process, which starts sooner; a process of
    # its own, as on GPUs, is faster once it runs.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        split(arguments.dataset, arguments.mirror, folder)
        model = arguments.model or tiny_model(arguments.dataset, folder)
        figures = measure(model, arguments.dataset, folder, arguments)
    result = {"dataset": arguments.dataset, "machine": platform.processor(), **figures}
    print(
        f"{result['dataset']}; {figures['select']['engine']}\n\n"
        "| strategy | prompts | tokens each | reused | ours, candidates/s "
        "| one at a time | ratio | stopped | ratio |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    )
    for strategy in STRATEGIES:
        row = figures[strategy]
        print(
            f"| `{strategy}` | {row['prompts']:,} | {row['tokens_a_prompt']:,.0f} "
            f"| {row['share_cached']:.0%} | {row['candidates_a_second']:,.0f} "
            f"| {row['reference_candidates_a_second']:.1f} | {row['speedup_over_reference']:.1f} "
            f"| {row['reference_stopped_candidates_a_second']:.1f} "
            f"| {row['speedup_over_reference_stopped']:.1f} |"
        )
    print(f"\nstarting the engine took {figures['select']['start_seconds']:.0f} s")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
