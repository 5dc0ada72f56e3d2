"""The command line; errors that a user can mend are one message, without a traceback."""

import gc
import os
import sys
import traceback

from igmask.cli.by_hand import app  # and with it all commands
from igmask.errors import InputError, in_words
from igmask.progress import say


def main() -> None:
    """Run the command line; errors that a user can mend are one message, without a traceback."""
    gc.set_threshold(10_000, 50, 50)  # imports make many objects and no cycles: a tenth of a job
    try:
        app()
    except SystemExit as ended:
        if not ended.code:
            _leave()
        raise
    except (InputError, OSError) as error:
        if os.environ.get("IGMASK_DEBUG"):
            raise
        say(f"igmask: error: {in_words(error)}")
        sys.exit(1)
    except Exception:
        say(traceback.format_exc(), terminal=False)  # for the log; the terminal gets it anyway
        raise


def _leave() -> None:
    """End a process that has done its work, without taking PyTorch's libraries apart.

    That takes as long as two thirds of a second, a fifth of a short job, and a study has many.
    Every file is closed by now.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
