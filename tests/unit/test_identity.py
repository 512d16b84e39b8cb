import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from refine.feedback.identity import identity, prompt_settings
from refine.feedback.registry import ENGINES

CONFIG = yaml.safe_load((Path(__file__).parents[2] / "config/config.yaml").read_text())
JUDGES: dict[str, dict[str, Any]] = CONFIG["judges"]
LLM_JUDGES = {name: judge for name, judge in JUDGES.items() if judge["kind"] in ENGINES}

OTHER: dict[str, Any] = {
    "kind": "x",
    "model": "another/model",
    "revision": "another",
    "server": "plain",
    "form": "other",
    "strategy": "score",
    "dtype": "float16",
    "quantization": "awq",
    "tokenizer": "another/model",
    "chat": {"enable_thinking": False},
    "engine": {"kv_cache_dtype": "fp8"},
    "request": {"reasoning_effort": "low"},
}
"""For each setting that answers depend on, a value that no judge of the configuration has."""

SPEED_AND_MONEY = {
    "tensor_parallel_size": 8,
    "memory_share": 0.5,
    "context": 512,
    "speed": {"prompt": 1, "answer": 1},
    "price": {},
    "url": "http://elsewhere/v1",
    "key": "ANOTHER_KEY",
    "concurrency": 1,
    "timeout": 1,
    "retries": 0,
}


@pytest.mark.parametrize("name", LLM_JUDGES)
def test_every_setting_of_an_llm_judge_either_matters_or_does_not(name: str) -> None:
    judge = LLM_JUDGES[name]
    before = identity(judge)
    # A setting in neither list is new: somebody has to say whether answers depend on it.
    assert set(judge) <= OTHER.keys() | SPEED_AND_MONEY.keys()
    for setting in judge:
        if setting in SPEED_AND_MONEY:
            assert identity(judge | {setting: SPEED_AND_MONEY[setting]}) == before, setting
        elif setting != "kind":
            assert identity(judge | {setting: OTHER[setting]}) != before, setting


def test_engine_arguments_for_speed_do_not_matter_and_the_rest_does() -> None:
    judge = JUDGES["vllm"]
    fast = {"max_num_seqs": 512, "enforce_eager": True, "gpu_memory_utilization": 0.5}
    assert identity(judge | {"engine": fast}) == identity(judge)
    dummy = identity(judge | {"engine": fast | {"load_format": "dummy"}})
    assert dummy["engine"] == {"load_format": "dummy"}


def test_another_way_of_asking_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: identity(judge) for name, judge in JUDGES.items()}
    monkeypatch.setattr("refine.feedback.identity.ASKING", 2)
    changed = {name for name, judge in JUDGES.items() if identity(judge) != before[name]}
    assert changed == LLM_JUDGES.keys()


@pytest.mark.parametrize("name", sorted(JUDGES.keys() - LLM_JUDGES))
def test_all_settings_of_other_judges_matter(name: str) -> None:
    judge = JUDGES[name]
    assert identity(judge) == judge
    assert prompt_settings(judge) == {}


def test_the_identity_is_a_copy_of_json_values() -> None:
    judge = json.loads(json.dumps(JUDGES["vllm"]))
    identity(judge)["engine"]["load_format"] = "dummy"
    identity(judge).clear()
    assert judge == JUDGES["vllm"]


def test_prompts_are_counted_by_the_model_that_answers_them() -> None:
    vllm = JUDGES["vllm"]
    assert prompt_settings(vllm) == {
        "kind": "vllm",
        "form": vllm["form"],
        "strategy": vllm["strategy"],
        "context": vllm["context"],
        "chat": vllm["chat"],
        "tokenizer": vllm["model"],
        "revision": vllm["revision"],
    }
    named = JUDGES["openai"] | {"model": "m", "tokenizer": "org/m", "revision": "July"}
    found = prompt_settings(named)
    assert (found["tokenizer"], found["revision"]) == ("org/m", None)
    assert prompt_settings(JUDGES["openai"])["tokenizer"] is None
