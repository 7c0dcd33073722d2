"""How fast a run is, counted honestly: real tokens and not padding, wall time with data and not compilation."""

import time


class Throughput:
    """Counts tokens over wall time, without the first update, which compiles, and without what lies between `stop` and
    `start`."""

    def __init__(self):
        self.real = self.padded = 0
        self.seconds = 0.0
        self._since: float | None = None

    def start(self) -> None:
        """Starts, or goes on after `stop`."""
        self._since = time.perf_counter()

    def stop(self) -> None:
        """Leaves out what follows: validation and saving."""
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since
        self._since = None

    def add(self, real: int, padded: int) -> None:
        """Counts one update's real tokens and all of its positions."""
        if self._since is not None:
            self.real += real
            self.padded += padded

    def rates(self) -> dict[str, float]:
        """Returns real and padded tokens a second so far, and the share of padding."""
        seconds = self.seconds + (time.perf_counter() - self._since if self._since is not None else 0.0)
        return {
            "real_tokens_per_second": self.real / seconds if seconds else 0.0,
            "padded_tokens_per_second": self.padded / seconds if seconds else 0.0,
            "padding": 1.0 - self.real / self.padded if self.padded else 0.0,
        }
