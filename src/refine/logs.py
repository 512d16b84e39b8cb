"""Logging of one stage: to its log file and to standard error."""

import gc
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def job_log(path: str | Path, *, append: bool = False) -> Iterator[logging.Logger]:
    """Logs the ``refine`` loggers to ``path`` and standard error for the length of a job.

    What is for the curious, such as the output of an engine, goes to the file alone.

    An error ends the process with status 1: one of our own with its message, which says what to
    do, any other with its traceback.

    Args:
        path: the log file.
        append: goes on with what it holds.

    Raises:
        SystemExit: the job failed.
    """
    # The libraries stay until the process ends: looking through PyTorch's 300,000 objects for
    # garbage, as the interpreter does at its end, takes a quarter of a second.
    gc.freeze()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger("refine")
    logger.setLevel(logging.DEBUG)
    to_file = logging.FileHandler(path, mode="a" if append else "w", encoding="utf-8")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    to_terminal = logging.StreamHandler(sys.stderr)
    to_terminal.setLevel(logging.INFO)
    to_terminal.setFormatter(logging.Formatter("%(message)s"))
    handlers = (to_file, to_terminal)
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield logger
    except Exception as error:
        expected = type(error).__module__.startswith(f"{logger.name}.")
        logger.error(error, exc_info=not expected)
        raise SystemExit(1) from None
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()
