"""The command line: `lrpfunc image`, `inspect`, `text`, `dataset`, `merge`, `report`, `digits`, `demo`, `check`.

Each command imports what it needs when it runs: torch takes seconds, `--help` and completion should not.
Read on in this order: failures, application, options, words, explaining, reading, running, trying.
"""

from lrpfunc.cli import explaining, reading, running, trying
from lrpfunc.cli.application import app
from lrpfunc.cli.failures import BAD_PATH, FAILED, INCOMPLETE, INTERRUPTED, REMEDIES, TERMINATED
