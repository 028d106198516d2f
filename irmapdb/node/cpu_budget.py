"""Limits the CPU time of the service and its children."""

from __future__ import annotations

import time

__all__ = ["CpuBudget"]

_BURST_S = 30.0


class CpuBudget:
    """A share of the time. Use beyond the share is a debt, which decreases with time."""

    def __init__(self, share: float) -> None:
        self.used_s = 0.0
        """All CPU time that was used."""
        self._share = share
        self._debt_s = 0.0
        self._debt_at_s = time.monotonic()

    def use(self, cpu_s: float) -> None:
        """Note CPU time that was used."""
        self.used_s += cpu_s
        self._debt_s += cpu_s

    def over_s(self) -> float:
        """Seconds until the CPU time that was used fits into the share; 0 if it fits now."""
        now_s = time.monotonic()
        self._debt_s = max(0.0, self._debt_s - (now_s - self._debt_at_s) * self._share)
        self._debt_at_s = now_s
        return max(0.0, (self._debt_s - _BURST_S * self._share) / self._share)
