"""Tables and curves that are made of the pipeline's own files."""

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from refine.artifacts import HISTORY, ArtifactError, read_json, write_json, write_table
from refine.evaluation.card import CardError
from refine.evaluation.summary import summarise
from refine.reporting.curve import draw_curves
from refine.reporting.dots import draw_comparison
from refine.reporting.table import main, read_summaries

CARD: dict[str, Any] = {
    "mask": "rated",
    "mask_validation": False,
    "k": [5, 20],
    "users_scored": 9,
    "users_skipped": 1,
    "candidate_items": 30,
}
NAMES = ("recall", "ndcg", "precision", "mrr", "hit_rate", "coverage", "gini")


def _metrics(folder: Path, experiment: str, recalls: list[float], **changes: Any) -> Path:
    """A metrics.json as the summary writes it."""
    runs = []
    for seed, recall in enumerate(recalls):
        values = {f"{name}@{k}": 0.25 for name in NAMES for k in (5, 20)} | {"recall@20": recall}
        run = {"model": "lightgcn", "seed": seed, "metrics": values, "card": CARD | changes}
        runs.append(folder / f"{experiment}-{seed}.json")
        write_json(run, runs[-1])
    truth = {"yes_rate": 0.5, "precision": 0.75, "recall": 0.625}
    write_json({"candidates": {}, "truth": truth}, folder / "refinement.json")
    output = folder / experiment / "metrics.json"
    context = {"dataset": "demo", "experiment": experiment, "judge": "profile"}
    summarise(
        runs,
        output,
        context=context | {"published": {"recall@20": 0.5}},
        refinements={"profile": folder / "refinement.json"},
    )
    return output


def test_one_file_is_a_table_of_its_metrics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(_metrics(tmp_path, "refine", [0.40, 0.44])), "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "**demo, refine (model lightgcn, judge profile), 2 seeds**"
    assert lines[2:5] == [
        "| Metric | Mean | SD | 95% interval | Published |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| Recall@20 | 0.4200 | 0.0283 | 0.1659 to 0.6741 | 0.5000 |",
    ]
    assert "| NDCG@20 | 0.2500 | 0.0000 | 0.2500 to 0.2500 | - |" in lines
    assert not any("@5" in line for line in lines)
    assert "9 users with a held-out positive, 1 without one skipped; all 30 items" in lines[12]
    assert "| profile | 0.5000 | 0.7500 | 0.6250 |" in lines


def test_nothing_published_no_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = _metrics(tmp_path, "refine", [0.4])
    summary = read_json(file)
    del summary["metrics"]["recall@20"]["published"]
    write_json(summary, file)
    assert main([str(file), "--markdown"]) == 0
    assert "| Metric | Mean | SD | 95% interval |\n" in capsys.readouterr().out


def test_several_files_are_a_table_of_experiments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [
        str(_metrics(tmp_path, name, recalls))
        for name, recalls in (("refine", [0.40, 0.44]), ("lightgcn", [0.3]))
    ]
    assert main([*files, "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[4:6] == [
        "| refine | profile | 2 | 0.4200 ± 0.0283 | 0.5000 | 0.2500 ± 0.0000 | - |",
        "| lightgcn | profile | 1 | 0.3000 | 0.5000 | 0.2500 | - |",
    ]
    assert main([*files, "--metrics", "precision@5", "--markdown"]) == 0
    assert "| Precision@5 ± SD | published |" in capsys.readouterr().out
    assert main([*files, "--metrics", "precision@7"]) == 1
    assert "precision@7: no such metric; there are recall@20" in capsys.readouterr().err


def test_numbers_of_different_cards_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [
        _metrics(tmp_path, "refine", [0.4]),
        _metrics(tmp_path, "other", [0.4], mask="train_positives"),
    ]
    with pytest.raises(CardError):
        read_summaries(files)
    assert main([str(file) for file in files]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert 'mask: "rated" in' in captured.err


def test_other_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _metrics(tmp_path, "refine", [0.4])
    with pytest.raises(ArtifactError, match=r"is no metrics\.json over seeds"):
        read_summaries([tmp_path / "refine-0.json"])
    with pytest.raises(ArtifactError, match="no such file; `snakemake"):
        read_summaries([tmp_path / "nowhere.json"])


def test_a_terminal_gets_a_drawn_table(tmp_path: Path) -> None:
    file = _metrics(tmp_path, "refine", [0.40, 0.44])
    done = subprocess.run(
        [sys.executable, "-m", "refine.reporting.table", str(file)],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(Path(__file__).parents[2] / "src"), "PYTHONIOENCODING": "utf-8"},
    )
    assert "Recall@20" in done.stdout
    assert "0.4200" in done.stdout
    assert "Judges against the truth" in done.stdout


def test_a_judge_table_needs_a_truth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = _metrics(tmp_path, "refine", [0.4])
    summary = read_json(file)
    summary["judges"]["profile"]["truth"] = None
    write_json(summary, file)
    assert main([str(file), "--markdown"]) == 0
    assert "Judges" not in capsys.readouterr().out


def _history(path: Path, epochs: int) -> Path:
    values = [epoch / (epoch + 10) for epoch in range(1, epochs + 1)]
    columns = [range(1, epochs + 1), [1 - value for value in values], values, values]
    write_table(pa.table(columns, names=HISTORY.names), path, HISTORY)
    return path


def test_curves_are_one_line_a_seed_and_repeat_byte_by_byte(tmp_path: Path) -> None:
    histories = {seed: _history(tmp_path / f"{seed}.parquet", 30) for seed in (2025, 2024)}
    output = tmp_path / "curve.svg"
    draw_curves(histories, output, title="Demo, refine", warmup_epochs=5)
    first = output.read_bytes()
    root = ElementTree.fromstring(first)  # noqa: S314 -- our own file
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    for text in ("Demo, refine", "Training loss", "Validation Recall@20", "2024", "2025"):
        assert text in texts
    draw_curves(histories, output, title="Demo, refine", warmup_epochs=5)
    assert output.read_bytes() == first


def test_an_empty_history_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "history.parquet"
    write_table(HISTORY.empty_table(), empty, HISTORY)
    with pytest.raises(ArtifactError, match="has no epoch"):
        draw_curves({1: empty}, tmp_path / "curve.svg", title="")


def test_a_chart_of_experiments_has_a_line_for_each(tmp_path: Path) -> None:
    rows = [
        {"experiment": name, "model": model, "metric": metric, "mean": mean, "sd": sd} | published
        for name, model, mean, sd, published in (
            ("refine", "lightgcn", 0.4, 0.01, {"published": 0.5}),
            ("mine", "sigrec (a reconstruction)", 0.3, None, {"published": None}),
        )
        for metric in ("recall@20", "ndcg@20")
    ]
    for chart in (tmp_path / "a.svg", tmp_path / "b.svg"):
        draw_comparison(rows, ["recall@20", "ndcg@20"], chart, title="Demo")
    drawn = (tmp_path / "a.svg").read_text(encoding="utf-8")
    for text in ("Demo", "refine", "mine (a reconstruction)", "Recall@20", "NDCG@20"):
        assert f">{text}</text>" in drawn
    assert (tmp_path / "b.svg").read_text(encoding="utf-8") == drawn
