"""What dry runs plan: the graph, other data sets, profiles; and what they refuse."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pipeline import ROOT, Pipeline, copy_of_code

from refine.config import extended, load
from refine.models.catalogue import FITTED

BASE = {"fetch_ratings": 1, "read_ratings": 1, "split_ratings": 1}
EXPERIMENTS = extended(load(ROOT / "config/config.yaml"))["experiments"]
ENGINES = ("probe", "answer_prompts")
PROFILES = ("default", "slurm", "kubernetes")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """One pipeline for all dry runs: they leave nothing behind."""
    return copy_of_code(tmp_path_factory.mktemp("plans") / "pipeline")


def test_the_graph_of_rules_is_the_documented_one(pipeline: Pipeline) -> None:
    assert rule_graph(pipeline, "results/demo/metrics.json") == {
        "read_ratings": {"fetch_ratings"},
        "split_ratings": {"read_ratings"},
        "write_prompts": {"split_ratings"},
        # A control that copies another judge's coverage reads that judge's labels.
        "answer_prompts": {"split_ratings", "write_prompts", "label_answers"},
        "label_answers": {"split_ratings", "write_prompts", "answer_prompts"},
        "label_by_threshold": {"split_ratings"},
        "describe_feedback": {
            "fetch_ratings",
            "split_ratings",
            "label_answers",
            "label_by_threshold",
        },
        "warm_up": {"split_ratings", "label_answers"},
        "mine_similar_items": {"split_ratings", "label_answers", "warm_up"},
        "train": {"split_ratings", "label_answers", "warm_up", "mine_similar_items"},
        "evaluate": {"split_ratings", "label_answers", "train"},
        "headline": {"evaluate", "describe_feedback"},
    }


def test_the_graph_of_published_labels(pipeline: Pipeline) -> None:
    graph = rule_graph(pipeline, "results/ml100k/compare/lightgcn-vs-refine.json")
    assert graph["label_from_release"] == {"fetch_release_labels", "split_ratings"}
    assert graph["label_by_threshold"] == {"split_ratings"}
    assert graph["warm_up"] == {"split_ratings", "label_from_release", "label_by_threshold"}
    assert graph["compare"] == {"evaluate"}
    assert "write_prompts" not in graph


def rule_graph(pipeline: Pipeline, target: str, **kwargs: str) -> dict[str, set[str]]:
    dot = pipeline.run(target, "--forceall", "--rulegraph", **kwargs)
    names = dict(re.findall(r'(\d+)\[label *= *"(\w+)"', dot))
    graph: dict[str, set[str]] = {}
    for above, below in re.findall(r"(\d+) -> (\d+)", dot):
        graph.setdefault(names[below], set()).add(names[above])
    return graph


def test_the_default_target_is_the_demo(pipeline: Pipeline) -> None:
    assert pipeline.planned() == pipeline.planned("results/demo/metrics.json") | {"all": 1}


def test_ml100k_uses_the_published_labels(pipeline: Pipeline) -> None:
    labels = {"fetch_release_labels": 1, "label_from_release": 1, "describe_feedback": 1}
    runs = dict.fromkeys(("warm_up", "mine_similar_items", "train", "evaluate"), 1)
    assert pipeline.planned("results/ml100k/metrics.json") == BASE | labels | runs | {"headline": 1}


@pytest.mark.parametrize("dataset", ["ml1m", "netflix1m"])
def test_larger_data_sets_use_the_same_rules(pipeline: Pipeline, dataset: str) -> None:
    jobs = pipeline.planned(f"results/{dataset}/metrics.json", "--config", "judge=threshold")
    labels = {"label_by_threshold": 1, "describe_feedback": 1}
    runs = dict.fromkeys(("warm_up", "mine_similar_items", "train", "evaluate"), 1)
    assert jobs == BASE | labels | runs | {"headline": 1}


def test_every_experiment_has_a_plan(pipeline: Pipeline) -> None:
    jobs = pipeline.planned(*(f"results/ml100k/{name}/metrics.json" for name in EXPERIMENTS))
    assert jobs["summarise"] == jobs["evaluate"] == len(EXPERIMENTS)
    fitted = [e for e in EXPERIMENTS.values() if e.get("model", {}).get("name") in FITTED]
    assert jobs["fit"] == len(fitted)
    assert jobs["warm_up"] == jobs["train"] == len(EXPERIMENTS) - len(fitted)
    # Similar items are for Re-Weighted BPR alone, which few models are trained by.
    mined = {name for name in EXPERIMENTS if name.startswith("judge-")} | {"refine", "refine-tuned"}
    assert jobs["mine_similar_items"] == len(mined)


def test_the_judge_of_the_command_line_labels_experiments_that_name_none(
    pipeline: Pipeline,
) -> None:
    targets = ("results/ml100k/refine/metrics.json", "results/ml100k/lightgcn/metrics.json")
    text = pipeline.run(*targets, "--dry-run", "--config", "judge=all")
    inputs = re.findall(r"rule warm_up:\n    input: (\S+?),", text)
    assert set(inputs) == {
        "results/ml100k/all/feedback.parquet",
        "results/ml100k/at-least-4/feedback.parquet",
    }


def test_mining_at_each_epoch_needs_no_mined_file(pipeline: Pipeline) -> None:
    configfile = pipeline.configure(mining={"refresh": "epoch"})
    jobs = pipeline.planned("results/demo/metrics.json", configfile=configfile)
    assert "mine_similar_items" not in jobs
    assert jobs["train"] == 1


@pytest.mark.parametrize(
    ("target", "reason", "remedy"),
    [
        ("results/ml1m/metrics.json", "The judge 'vllm' cannot run on ml1m", "make llm"),
        ("results/ml1m/vllm/probe.json", "The judge 'vllm' cannot run on ml1m", "--sdm conda"),
        ("results/demo/openai/probe.json", "The judge 'openai' cannot run on demo", "`model`"),
        ("results/ml1m/release/feedback.parquet", "The judge 'release' cannot run on ml1m", ""),
    ],
)
def test_a_judge_that_cannot_run_stops_everything_before_the_first_job(
    pipeline: Pipeline, target: str, reason: str, remedy: str
) -> None:
    done = pipeline.attempt(target)
    assert done.returncode != 0
    assert reason in done.stdout
    assert remedy in done.stdout
    assert "--config judge=" in done.stdout
    assert "Traceback" not in done.stdout
    assert not (pipeline.folder / "resources").exists()
    # It left no lock either.
    assert not [*(pipeline.folder / ".snakemake/locks").glob("*")]


@pytest.fixture
def with_vllm(pipeline: Pipeline) -> Iterator[Pipeline]:
    """The pipeline where an interpreter is said to have vLLM; dry runs do not look closer."""
    pipeline.variables["REFINE_LLM_PYTHON"] = sys.executable
    yield pipeline
    del pipeline.variables["REFINE_LLM_PYTHON"]


def test_a_larger_data_set_is_judged_by_a_language_model(with_vllm: Pipeline) -> None:
    # With two controls beside it, and neither a probe nor published labels.
    jobs = with_vllm.planned("results/ml1m/vllm/refinement.json")
    each = dict.fromkeys(("write_prompts", "label_answers"), 2)
    assert jobs == BASE | each | {"answer_prompts": 4, "describe_feedback": 1}


def test_engines_ask_for_the_gpus_they_share_the_model_between(with_vllm: Pipeline) -> None:
    configfile = with_vllm.configure(
        judges={"vllm": {"tensor_parallel_size": 4}}, refine={"compare_with": []}
    )
    targets = ("results/ml1m/vllm/probe.json", "results/ml1m/vllm/refinement.json")
    jobs = with_vllm.announced(*targets, configfile=configfile)
    for rule in ENGINES:
        assert (jobs[rule]["gpu"], jobs[rule]["engine"]) == ("4", "1")
        assert int(jobs[rule]["mem_mb"]) == 32000
    assert int(jobs["answer_prompts"]["runtime"]) == 720
    assert not [rule for rule, asked in jobs.items() if "gpu" in asked and rule not in ENGINES]


def test_endpoints_ask_for_time_and_no_gpu(pipeline: Pipeline) -> None:
    configfile = pipeline.configure(judges={"openai": {"model": "x"}}, refine={"compare_with": []})
    targets = ("results/ml1m/openai/probe.json", "results/ml1m/openai/refinement.json")
    jobs = pipeline.announced(*targets, configfile=configfile)
    for rule in ENGINES:
        assert "gpu" not in jobs[rule]
        assert "engine" not in jobs[rule]
    assert int(jobs["answer_prompts"]["runtime"]) == 720


@pytest.mark.parametrize("judge", ["vllm", "openai", "profile"])
def test_a_gate_has_language_models_probed_first(with_vllm: Pipeline, judge: str) -> None:
    settings = {"judges": {"openai": {"model": "x"}}, "refine": {"compare_with": []}}
    target = f"results/demo/{judge}/refinement.json"
    free = rule_graph(with_vllm, target, configfile=with_vllm.configure(**settings))
    assert "probe" not in free
    gate = {"datasets": {"demo": {"probe": {"min_auc": 0.6}}}}
    gated = rule_graph(with_vllm, target, configfile=with_vllm.configure(**settings, **gate))
    if judge == "profile":
        assert gated == free
    else:
        assert gated.pop("probe") == {"split_ratings"}
        assert gated.pop("answer_prompts") == free.pop("answer_prompts") | {"probe"}
        assert gated == free


def test_a_plan_needs_the_prompts_and_nobody_to_answer(pipeline: Pipeline) -> None:
    jobs = pipeline.planned("results/ml1m/vllm/plan.json", "results/ml1m/openai/plan.json")
    assert jobs == BASE | {"write_prompts": 2, "plan": 2}


@pytest.mark.parametrize("target", ["plan", "probe"])
def test_only_language_models_are_planned_for_and_probed(pipeline: Pipeline, target: str) -> None:
    done = pipeline.attempt(f"results/demo/profile/{target}.json", "--dry-run")
    assert done.returncode != 0
    assert "MissingRuleException" in done.stdout


def test_conda_deploys_the_engine(pipeline: Pipeline, tmp_path: Path) -> None:
    conda = tmp_path / "conda"
    about = {"platform": "linux-64", "conda_version": "25.1.1", "conda_prefix": "/"}
    answer = json.dumps(about | {"get": {"channel_priority": "strict"}})
    conda.write_text(f"#!/bin/sh\necho '{answer}'\n")
    conda.chmod(0o755)
    pipeline.variables["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    try:
        text = pipeline.run("results/ml1m/vllm/probe.json", "--dry-run", "--sdm", "conda")
    finally:
        del pipeline.variables["PATH"]
    assert re.search(r"Conda environment \S*envs/llm.yaml will be created", text)
    assert re.search(r"Conda environment \S*envs/prepare.yaml will be created", text)


def test_labels_that_are_there_need_no_judge(finished: Pipeline, tmp_path: Path) -> None:
    copy = finished.copy(tmp_path / "pipeline")
    labels = copy.folder / "results/demo/profile"
    labels.rename(labels.with_name("vllm"))
    configfile = copy.configure(datasets={"demo": {"judge": "vllm", "scored_judges": []}})
    jobs = copy.planned("results/demo/vllm/refinement.json", configfile=configfile)
    assert not jobs.keys() & {"write_prompts", "answer_prompts"}


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        (
            {"model": {"learning_rat": 0.1}},
            "model.learning_rat: unknown key; did you mean 'learning_rate'?",
        ),
        (
            {"experiments": {"mine": {"judge": "profil"}}},
            "experiments.mine.judge: there is no judge 'profil'; did you mean 'profile'?",
        ),
        (
            {"experiments": {"mine": {"split": {"test": 0.3}}}},
            "experiments.mine.split: unknown key",
        ),
    ],
)
def test_a_faulty_configuration_is_refused(
    pipeline: Pipeline, settings: dict[str, object], fault: str
) -> None:
    done = pipeline.attempt("--dry-run", configfile=pipeline.configure(**settings))
    assert done.returncode != 0
    assert fault in done.stdout
    assert "Traceback" not in done.stdout


def test_a_warm_up_that_outlasts_the_training_concerns_only_who_runs_it(
    pipeline: Pipeline,
) -> None:
    configfile = pipeline.configure(datasets={"demo": {"training": {"warmup_epochs": 5}}})
    assert pipeline.planned("results/ml100k/metrics.json", configfile=configfile)
    done = pipeline.attempt("results/demo/metrics.json", "--dry-run", configfile=configfile)
    assert done.returncode != 0
    assert "training.warmup_epochs (5) exceeds training.epochs (4)" in done.stdout
    assert "Traceback" not in done.stdout


def test_lists_on_the_command_line_are_refused_with_the_way_out(pipeline: Pipeline) -> None:
    done = pipeline.attempt("--dry-run", "--config", "seeds=[1]")
    assert done.returncode != 0
    assert "seeds.0: '1' is not of type 'integer'" in done.stdout
    assert "pass it with --configfile" in done.stdout


def ask(pipeline: Pipeline, profile: str, *arguments: str) -> dict[str, dict[str, str]]:
    where = ("--default-storage-prefix", str(pipeline.folder)) if profile == "kubernetes" else ()
    return pipeline.announced(
        "results/demo/metrics.json", "--workflow-profile", f"profiles/{profile}", *where, *arguments
    )


@pytest.mark.parametrize("profile", PROFILES)
def test_only_training_asks_for_a_gpu(pipeline: Pipeline, profile: str) -> None:
    jobs = ask(pipeline, profile)
    assert {rule for rule, asked in jobs.items() if "gpu" in asked} == {"warm_up", "train"}
    assert jobs["train"]["gpu"] == "1"


@pytest.mark.parametrize("profile", PROFILES)
def test_without_gpus_none_is_asked_for(pipeline: Pipeline, profile: str) -> None:
    jobs = ask(pipeline, profile, "--config", "device=cpu")
    assert not [rule for rule, asked in jobs.items() if "gpu" in asked]


@pytest.mark.parametrize("profile", PROFILES)
def test_every_job_says_what_memory_and_time_it_needs(pipeline: Pipeline, profile: str) -> None:
    jobs = ask(pipeline, profile)
    assert len(jobs) >= 12
    for rule, asked in jobs.items():
        if rule != "all":
            assert 500 <= int(asked["mem_mb"]) <= 8192, rule
            assert 0 < int(asked["runtime"]) <= 720, rule


def test_slurm_gets_gpu_jobs_on_the_gpu_partition(pipeline: Pipeline) -> None:
    jobs = ask(pipeline, "slurm")
    assert jobs["train"]["slurm_partition"] == jobs["warm_up"]["slurm_partition"] == "gpu"
    assert jobs["split_ratings"]["slurm_partition"] == jobs["evaluate"]["slurm_partition"] == "cpu"


def test_kubernetes_is_told_the_make_of_the_gpus(pipeline: Pipeline) -> None:
    assert ask(pipeline, "kubernetes")["train"]["gpu_manufacturer"] == "nvidia"


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_agree_on_what_concerns_correctness(profile: str) -> None:
    settings = yaml.safe_load((ROOT / f"profiles/{profile}/config.yaml").read_text())
    # Scripts' dates would rerun stages: their content is part of the parameters instead.
    assert set(settings["rerun-triggers"]) == {"mtime", "input", "params", "software-env"}
    assert settings["rerun-incomplete"] is True
    assert settings["show-failed-logs"] is True
    assert settings["max-checksum-file-size"] == "2GB"
    assert settings.get("keep-incomplete", False) is False


def test_snakemake_finds_nothing_to_complain_about() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--lint"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
