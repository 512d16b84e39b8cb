"""What a stage of training loads: of a job that takes seconds, imports are the greater part."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
from training_data import planted, settings, write_artifacts

from refine.artifacts import write_json, write_table
from refine.evaluation.stage import evaluate
from refine.training.mine import mine
from refine.training.processes import told
from refine.training.train import train
from refine.training.warm_up import warm_up

EVALUATION = {"k": [20], "mask": "rated", "mask_validation": False, "recommendations": 20}
HEAVY = {"torch._dynamo", "pandas", "polars", "scipy", "matplotlib"}
CODE = """
import importlib, json, sys
from refine.training.processes import understood
for module, function, arguments in json.loads(sys.argv[1]):
    stage = getattr(importlib.import_module(module), function)
    stage(**{name: understood(argument) for name, argument in arguments.items()})
print(json.dumps(list(sys.modules)))
"""


def test_training_loads_nothing_heavy_beside_pytorch(tmp_path: Path) -> None:
    feedback, validation, users, items = write_artifacts(planted(), tmp_path)
    ids = {"user": [f"u{user}" for user in range(120)], "item": list(range(80))}
    for path, code in ((users, "user"), (items, "item")):
        named = {code: range(len(ids[code])), f"{code}_id": ids[code], "title": ids[code]}
        write_table(pa.table(named), path)
    statistics = tmp_path / "statistics.json"
    write_json({"split_digest": "d"}, statistics)

    names = ("warmup", "similar", "model", "history", "metrics", "per_user", "recommendations")
    warmup, similar, model, history, metrics, per_user, lists = (tmp_path / name for name in names)
    read = {"feedback": feedback, "validation": validation, "users": users, "items": items}
    configured = settings(training={"epochs": 3, "warmup_epochs": 2})
    run = read | {"settings": configured, "seed": 1, "device": "cpu"}
    ranked = {"model": model, "test": validation, "statistics": statistics, "device": "cpu"}
    ranked |= {"metrics": metrics, "per_user": per_user, "recommendations": lists}
    stages: list[tuple[Callable[..., None], dict[str, object]]] = [
        (warm_up, run | {"output": warmup}),
        (mine, read | {"settings": configured, "state": warmup, "output": similar}),
        (
            train,
            run | {"state": warmup, "similar_items": similar, "model": model, "history": history},
        ),
        (evaluate, read | ranked | {"evaluation": EVALUATION}),
    ]
    order = [
        (stage.__module__, stage.__name__, {name: told(value) for name, value in given.items()})
        for stage, given in stages
    ]
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(order)], stdout=subprocess.PIPE, check=True
    )
    loaded = set(json.loads(done.stdout))
    assert "torch" in loaded
    assert not loaded & HEAVY
