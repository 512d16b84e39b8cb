import logging
from pathlib import Path

import pytest

from refine.artifacts import ArtifactError
from refine.logs import job_log


def test_an_error_of_ours_is_its_message_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, job_log(tmp_path / "logs/job.log"):
        raise ArtifactError("ratings.csv, row 3: no rating; fill it in")
    assert ended.value.code == 1
    assert capsys.readouterr().err == "ratings.csv, row 3: no rating; fill it in\n"
    assert (
        (tmp_path / "logs/job.log")
        .read_text()
        .endswith("ERROR ratings.csv, row 3: no rating; fill it in\n")
    )


def test_an_error_that_nobody_foresaw_comes_with_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(SystemExit), job_log(tmp_path / "job.log"):
        [][0]
    text = (tmp_path / "job.log").read_text()
    assert "Traceback" in text
    assert "IndexError" in text


def test_a_job_that_ends_well_leaves_its_lines_and_no_handler(tmp_path: Path) -> None:
    with job_log(tmp_path / "job.log") as logger:
        logging.getLogger("refine.splits").info("938 users")
    logger.info("after the job")
    assert (tmp_path / "job.log").read_text().endswith(" INFO 938 users\n")
    assert logger.handlers == []


def test_what_an_engine_prints_is_for_the_log_file_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with job_log(tmp_path / "job.log"):
        logging.getLogger("refine.engine").debug("Capturing CUDA graphs")
        logging.getLogger("refine.ask").info("the engine is ready")
    assert capsys.readouterr().err == "the engine is ready\n"
    assert " DEBUG Capturing CUDA graphs\n" in (tmp_path / "job.log").read_text()
