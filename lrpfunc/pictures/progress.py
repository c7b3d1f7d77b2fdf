"""Progress of long work, on a terminal and in a log."""

from __future__ import annotations


class ProgressBar:
    """A progress bar on a terminal, with rate and time that remains; a line now and then in a log."""

    LOG_SECONDS = 30.0
    WIDE = 72  # columns of a terminal; what is narrower gets the counts alone

    def __init__(self, what: str):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console(stderr=True, highlight=False)
        counts = (TextColumn("{task.description}"), MofNCompleteColumn())
        rest = (BarColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
        self._bar = Progress(
            *counts,
            *(rest if self._console.width >= self.WIDE else ()),
            TextColumn("[red]{task.fields[errors]}"),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task(what, total=None, rate="", errors="")
        self._what, self._began, self._first, self._logged = what, 0.0, 0, 0.0

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def __call__(self, done: int, total: int, failures: int = 0) -> None:
        """Show that so many are done, of which some failed. The first call is where the clock starts."""
        import time

        now = time.monotonic()
        if not self._began:
            self._began, self._first, self._logged = now, done, now
            self._bar.reset(self._task, total=total, completed=done)
        passed = now - self._began
        rate = f"{(done - self._first) / passed:.1f}/s" if passed > 0 and done > self._first else ""
        errors = f"{failures} errors" if failures else ""
        self._bar.update(self._task, total=total, completed=done, rate=rate, errors=errors)
        if not self._console.is_terminal and now - self._logged >= self.LOG_SECONDS:
            self._logged = now
            self._console.print(f"{self._what} {done} of {total} {rate} {errors}".rstrip())
