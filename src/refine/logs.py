"""Logging of one stage: to its log file and to standard error."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def job_log(path: str | Path) -> Iterator[logging.Logger]:
    """Logs the ``refine`` loggers to ``path`` and standard error for the length of a job.

    An exception is logged with its traceback and raised again.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger("refine")
    logger.setLevel(logging.INFO)
    to_file = logging.FileHandler(path, mode="w", encoding="utf-8")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    to_terminal = logging.StreamHandler(sys.stderr)
    to_terminal.setFormatter(logging.Formatter("%(message)s"))
    handlers = (to_file, to_terminal)
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield logger
    except BaseException:
        logger.exception("the job failed")
        raise
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()
