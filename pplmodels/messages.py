"""Informational messages on the terminal."""

import logging
import sys

from tqdm import tqdm

from pplmodels import distributed

logger = logging.getLogger("pplmodels")  # to silence it: logging.getLogger("pplmodels").setLevel(logging.WARNING)


class _Terminal(logging.Handler):
    """Writes messages to stderr, above the progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record."""
        tqdm.write(self.format(record), file=sys.stderr)


logger.addHandler(_Terminal())
logger.setLevel(logging.INFO)
logger.propagate = False


def say(line: str) -> None:
    """Print one line of information to stderr, on rank 0 only."""
    if distributed.rank() == 0:
        logger.info(line)
