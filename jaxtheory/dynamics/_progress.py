"""A progress bar that shows it is alive while a program compiles."""

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

_SECONDS = 0.5
# In a file every redraw is a line that stays.
_SECONDS_IN_FILES = 15.0


@contextlib.contextmanager
def ticking(bar: Any) -> Iterator[Any]:
    """Redraw a progress bar twice a second, so that its clock never stands still.

    Four times a minute where its output is no terminal.

    A tqdm bar draws itself only when it is updated, and compiling or a long measurement
    updates nothing for many seconds. The bar is closed at the end.

    Args:
        bar: A tqdm bar.

    Yields:
        The same bar.

    Example:
        >>> from tqdm import tqdm
        >>> with ticking(tqdm(total=2, disable=True)) as bar:
        ...     _ = bar.update(2)
    """
    done = threading.Event()
    is_file = not getattr(bar, "fp", sys.stderr).isatty()
    seconds = _SECONDS_IN_FILES if is_file else _SECONDS

    def redraw():
        while not done.wait(seconds):
            bar.refresh()

    thread = threading.Thread(target=redraw, daemon=True)
    thread.start()
    try:
        yield bar
    finally:
        done.set()
        thread.join()
        bar.close()
