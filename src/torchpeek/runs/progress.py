"""RunProgress: how far a run is, how fast, and what it waits for."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


@dataclass
class RunProgress:
    """How far a run is.

    Args:
        total: Samples to compute.
        done: Samples that were computed by this process, those that failed among them.
        failed: Samples that failed.
        skipped: Samples that were computed before.
        waited: Seconds that the device waited for samples.
        last_error: The last failure, in words.
        began: When it began, as `time.perf_counter` has it.
    """

    total: int = 0
    done: int = 0
    failed: int = 0
    skipped: int = 0
    waited: float = 0.0
    last_error: str = ""
    began: float = field(default_factory=time.perf_counter)

    def add(self, count: int, failed: int, waited: float) -> None:
        """Add a batch."""
        self.done += count
        self.failed += failed
        self.waited += waited

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return time.perf_counter() - self.began

    @property
    def rate(self) -> float:
        """Samples a second."""
        return self.done / max(self.seconds, 1e-9)

    @property
    def remaining(self) -> float | None:
        """Seconds that are left; None before the first batch."""
        return max(0, self.total - self.done - self.skipped) / self.rate if self.done else None

    @property
    def waiting_share(self) -> float:
        """The share of the time that the device waited for samples."""
        return min(1.0, self.waited / max(self.seconds, 1e-9))

    @property
    def memory(self) -> int:
        """The most memory that this process has had, in bytes; 0 where the system does not tell."""
        if resource is None:
            return 0
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    def line(self) -> str:
        """A line for a log."""
        rest = "" if self.remaining is None else f", {duration(self.remaining)} left"
        return (
            f"{self.done + self.skipped:,} of {self.total:,} samples, {self.rate:.1f} a second{rest}, {self.failed:,} "
            f"failed, device waited {self.waiting_share:.0%}, {self.memory / 2**30:.1f} GiB"
        )

    def prometheus(self) -> str:
        """The same in the text format of Prometheus, for the textfile collector of its node exporter."""
        values = (
            ("samples", "gauge", "Samples to compute", self.total),
            ("samples_done_total", "counter", "Samples that are done", self.done + self.skipped),
            ("samples_failed_total", "counter", "Samples that failed", self.failed),
            ("samples_per_second", "gauge", "Samples a second", self.rate),
            ("waiting_ratio", "gauge", "Share of the time that the device waited", self.waiting_share),
            ("memory_bytes", "gauge", "The most memory that the process has had", self.memory),
            ("remaining_seconds", "gauge", "Seconds that are left", self.remaining or 0),
        )
        return "".join(
            f"# HELP torchpeek_run_{name} {words}.\n"
            f"# TYPE torchpeek_run_{name} {kind}\ntorchpeek_run_{name} {value:g}\n"
            for name, kind, words, value in values
        )


def duration(seconds: float) -> str:
    """A duration in words, such as "2 h 5 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
