"""Summaries over seeds against numbers worked out by hand."""

from pathlib import Path
from typing import Any

import pytest

from refine.artifacts import ArtifactError, read_json, write_json
from refine.evaluation.card import CardError
from refine.evaluation.summary import summarise, wall_times

CARD: dict[str, Any] = {"mask": "rated", "mask_validation": False, "k": [5, 20]}
NAMES = [
    f"{name}@{k}"
    for name in ("recall", "ndcg", "precision", "mrr", "hit_rate", "coverage", "gini")
    for k in (5, 20)
]


def _run(folder: Path, seed: int, recall: float, **changes: Any) -> Path:
    run = {
        "model": "lightgcn",
        "seed": seed,
        "epoch": 100 + seed,
        "metrics": dict.fromkeys(NAMES, 0.5) | {"recall@20": recall},
        "card": CARD,
        "evaluated_on": {"device": "cpu"},
    }
    path = folder / f"seed{seed}.json"
    write_json(run | changes, path)
    return path


def _summarise(folder: Path, runs: list[Path], **context: Any) -> dict[str, Any]:
    summarise(runs, folder / "metrics.json", context=context)
    result: dict[str, Any] = read_json(folder / "metrics.json")
    return result


def test_hand_computed_seeds(tmp_path: Path) -> None:
    runs = [_run(tmp_path, seed, recall) for seed, recall in ((3, 0.44), (1, 0.40), (2, 0.42))]
    result = _summarise(
        tmp_path,
        runs,
        dataset="ml100k",
        experiment="refine",
        judge="release",
        published={"recall@20": 0.4296},
        config_digest="abc",
        settings={"model": {}},
    )
    row = result["metrics"]["recall@20"]
    assert row["mean"] == pytest.approx(0.42)
    assert row["sd"] == pytest.approx(0.02)
    # t quantile .975 with 2 degrees of freedom: 4.302653; times .02 / sqrt(3).
    assert row["interval"] == pytest.approx([0.42 - 0.0496828, 0.42 + 0.0496828], abs=1e-6)
    assert row["per_seed"] == [0.40, 0.42, 0.44]
    assert row["published"] == 0.4296
    assert row["difference"] == pytest.approx(-0.0096)
    assert result["seeds"] == [1, 2, 3]
    assert result["best_epochs"] == [101, 102, 103]
    assert result["config_digest"] == "abc"
    assert result["model"] == "lightgcn"
    assert result["evaluated_on"] == {"device": "cpu"}
    assert "published" not in result["metrics"]["ndcg@20"]
    # People read from the top.
    assert list(result)[:6] == ["headline", "dataset", "experiment", "judge", "model", "seeds"]
    assert list(result["metrics"])[:2] == ["recall@20", "ndcg@20"]
    assert set(result["metrics"]) == set(NAMES)
    assert result["headline"] == (
        "Recall@20 0.4200 (0.3703 to 0.4697; published 0.4296), "
        "NDCG@20 0.5000 (0.5000 to 0.5000); 3 seeds"
    )


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    result = _summarise(tmp_path, [_run(tmp_path, 1, 0.4)])
    assert result["metrics"]["recall@20"] == {
        "mean": 0.4,
        "sd": None,
        "interval": None,
        "per_seed": [0.4],
    }
    assert result["headline"] == "Recall@20 0.4000, NDCG@20 0.5000; 1 seed"


def test_an_interval_ends_where_metrics_do(tmp_path: Path) -> None:
    runs = [_run(tmp_path, seed, recall) for seed, recall in ((1, 0.0), (2, 1.0))]
    assert _summarise(tmp_path, runs)["metrics"]["recall@20"]["interval"] == [0.0, 1.0]


def test_confidence_is_configured(tmp_path: Path) -> None:
    runs = [_run(tmp_path, seed, recall) for seed, recall in ((1, 0.40), (2, 0.42), (3, 0.44))]
    result = _summarise(tmp_path, runs, confidence=0.9)
    # t quantile .95 with 2 degrees of freedom: 2.919986.
    half = 2.919986 * 0.02 / 3**0.5
    assert result["metrics"]["recall@20"]["interval"] == pytest.approx([0.42 - half, 0.42 + half])
    assert result["confidence"] == 0.9


def test_published_values_stand_beside_the_same_rules_only(tmp_path: Path) -> None:
    card = CARD | {"mask_validation": True}
    runs = [_run(tmp_path, 1, 0.45, card=card)]
    result = _summarise(tmp_path, runs, published={"recall@20": 0.4296})
    assert "published" not in result["metrics"]["recall@20"]
    assert result["published"] == {
        "not_comparable": {"recall@20": 0.4296},
        "measured_with": {"mask": "rated", "mask_validation": False},
    }


def test_published_values_may_name_the_mask_that_they_fit(tmp_path: Path) -> None:
    runs = [_run(tmp_path, 1, 0.41)]
    published = {"recall@20": 0.3447, "mask": "train_positives"}
    result = _summarise(tmp_path, runs, published=published)
    assert "published" not in result["metrics"]["recall@20"]
    assert result["published"] == {
        "not_comparable": {"recall@20": 0.3447},
        "measured_with": {"mask": "train_positives", "mask_validation": False},
    }


def test_published_values_of_other_cut_offs_are_left_out_but_typos_are_not(tmp_path: Path) -> None:
    runs = [_run(tmp_path, 1, 0.4)]
    assert _summarise(tmp_path, runs, published={"recall@50": 0.6})
    with pytest.raises(ArtifactError, match="'recal@20': no such metric"):
        _summarise(tmp_path, runs, published={"recal@20": 0.6})
    assert _summarise(tmp_path, runs, published=None)


def test_seeds_that_differ_in_model_or_machine_say_so(tmp_path: Path) -> None:
    runs = [
        _run(tmp_path, 1, 0.4, trained_on={"device": "cpu"}),
        _run(tmp_path, 2, 0.4, trained_on={"device": "cuda"}),
    ]
    assert _summarise(tmp_path, runs)["trained_on"] == [{"device": "cpu"}, {"device": "cuda"}]


def test_different_cards_are_refused(tmp_path: Path) -> None:
    runs = [_run(tmp_path, 1, 0.4), _run(tmp_path, 2, 0.4, card=CARD | {"mask": "other"})]
    with pytest.raises(CardError, match=r"mask: .*seed1\.json.*seed2\.json"):
        _summarise(tmp_path, runs)
    assert not (tmp_path / "metrics.json").exists()


def test_unusable_runs_are_refused(tmp_path: Path) -> None:
    run = _run(tmp_path, 1, 0.4)
    with pytest.raises(ArtifactError, match=r"the same seed occurs twice in \[1, 1\]"):
        _summarise(tmp_path, [run, _run(tmp_path / "other", 1, 0.5)])
    write_json({"metrics": {}}, run)
    with pytest.raises(ArtifactError, match=r"seed1\.json: card, model, seed is missing"):
        _summarise(tmp_path, [run])


def test_judges_are_told_with_their_agreement(tmp_path: Path) -> None:
    truth = {"precision": 0.7, "recall": 0.6, "yes_rate": 0.5}
    refinement = tmp_path / "refinement.json"
    write_json({"labels": {}, "candidates": {"total": 9}, "truth": truth}, refinement)
    output = tmp_path / "metrics.json"
    runs = [_run(tmp_path, 1, 0.4)]
    summarise(runs, output, context={}, refinements={"profile": refinement})
    assert read_json(output)["judges"] == {"profile": {"candidates": {"total": 9}, "truth": truth}}


def test_wall_times_are_read_off_benchmark_tables(tmp_path: Path) -> None:
    header = "s\th:m:s\tmax_rss\tmax_vms\n"
    (tmp_path / "1.tsv").write_text(header + "61.5\t0:01:01\t500.25\t900\n")
    (tmp_path / "2.tsv").write_text(header + "30.25\t0:00:30\t620.5\t900\n")
    (tmp_path / "3.tsv").write_text(header + "0.01\t0:00:00\tNA\t-\n")
    tables = {
        "train": [tmp_path / "1.tsv", tmp_path / "2.tsv"],
        "split": [tmp_path / "3.tsv"],
        "gone": [tmp_path / "4.tsv"],
    }
    assert wall_times(tables) == {
        "train": {"jobs": 2, "seconds": 91.75, "longest_seconds": 61.5, "max_rss_mb": 620.5},
        "split": {"jobs": 1, "seconds": 0.01, "longest_seconds": 0.01, "max_rss_mb": None},
    }
