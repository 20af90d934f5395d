"""Lines for the person at the terminal."""

import logging
import sys

from tqdm import tqdm

from pplmodels import distributed

logger = logging.getLogger("pplmodels")  # to silence it: logging.getLogger("pplmodels").setLevel(logging.WARNING)


class _Terminal(logging.Handler):
    """Writes a line to stderr, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record."""
        tqdm.write(self.format(record), file=sys.stderr)


logger.addHandler(_Terminal())
logger.setLevel(logging.INFO)
logger.propagate = False


def say(line: str) -> None:
    """Show one line of information on stderr, by rank 0 only."""
    if distributed.rank() == 0:
        logger.info(line)
