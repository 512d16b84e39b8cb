import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from training_data import planted, settings

from refine import shards
from refine.models.lightgcn import LightGCN
from refine.training import processes
from refine.training.loop import TrainingError
from refine.training.setup import new_trainer
from refine.training.underway import Underway

HERE = Path(__file__).parent
EPOCHS = 5
TOLERANCE = {"float64": 1e-9, "float32": 1e-5}


def trained(folder: Path, dtype: str, processes: int) -> dict[str, Any]:
    output = folder / f"{dtype}-{processes}.pt"
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [
        sys.executable,
        *(launcher if processes > 1 else []),
        *(str(HERE / "shared_training.py"), dtype, str(EPOCHS), str(output)),
    ]
    paths = os.pathsep.join([str(HERE.parents[1] / "src"), str(HERE)])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    subprocess.run(command, env=environment, check=True, timeout=300)
    return torch.load(output)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_any_number_of_processes_trains_the_same_model(tmp_path: Path, dtype: str) -> None:
    alone = trained(tmp_path, dtype, 1)
    assert not any(alone["sent"].values())
    assert len(alone["losses"]) == EPOCHS
    for count in (2, 4):
        shared = trained(tmp_path, dtype, count)
        for name in ("losses", "embedding", "best", "moments"):
            found, expected = torch.as_tensor(shared[name]), torch.as_tensor(alone[name])
            assert found.shape == expected.shape
            torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[dtype], msg=name)
        assert shared["recalls"] == pytest.approx(alone["recalls"], abs=0.01)

        # A step: the batch's margins and one norm. An epoch: the embeddings, once.
        nodes, dimension = alone["embedding"].shape
        messages = shared["sent"]["all_reduce"]
        assert messages
        assert max(messages) == 513
        assert messages.count(513) == len(messages) - EPOCHS  # the last batch of each is smaller
        assert set(shared["sent"]["all_gather"]) == {nodes * dimension // count}


def test_a_process_on_its_own_sends_nothing() -> None:
    whole = torch.rand(3, 4)
    assert shards.processes() == 1
    assert shards.is_first()
    assert shards.own_columns(whole) is whole
    assert shards.all_columns(whole) is whole
    assert shards.add_up(whole) == (whole,)
    assert shards.agree(True, False, device=whole.device) == (True, False)
    shards.wait()


def test_columns_that_cannot_be_shared_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "processes", lambda: 3)
    with pytest.raises(shards.ShardError, match=r"dimension \(64\) must be a multiple .* \(3\)"):
        shards.own_columns(torch.rand(2, 64))


def test_a_model_that_cannot_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LightGCN, "can_be_shared", False)
    new_trainer(planted(), settings(), 0)
    monkeypatch.setattr("refine.training.setup.shards.processes", lambda: 2)
    monkeypatch.setattr(shards, "own_columns", lambda whole: whole)
    with pytest.raises(TrainingError, match="lightgcn is trained by one process"):
        new_trainer(planted(), settings(), 0)


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    message = "processes is 64, but PyTorch sees"
    with pytest.raises(shards.ShardError, match=message), shards.joined("cuda"):
        pass


def test_what_a_stage_is_told_arrives() -> None:
    arguments = {
        "items": Path("split/items.parquet"),
        "similar_items": None,
        "settings": {"model": {"path": "no path"}},
        "seed": 3,
        "leave": Underway(Path("train.safetensors"), 0.5),
    }
    for argument in arguments.values():
        told = json.loads(json.dumps(processes.told(argument)))
        assert processes.understood(told) == argument


def test_one_process_runs_a_stage_where_it_is(tmp_path: Path) -> None:
    called: list[object] = []
    processes.run(lambda **given: called.append(given), 1, tmp_path / "log", device="cpu", seed=3)
    assert called == [{"device": "cpu", "seed": 3}]
