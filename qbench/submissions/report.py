"""Findings and the level of trust of each run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from qbench.util.text import plain

Verdict = Literal["ok", "note", "FAILED"]
Level = Literal["claimed", "verified", "reproduced"]
LEVELS: tuple[Level, ...] = ("claimed", "verified", "reproduced")
"""From the least to the most."""
MOST_FAILURES = 20
"""Told of each check."""


@dataclass(frozen=True)
class Finding:
    check: str
    verdict: Verdict
    detail: str

    def __str__(self) -> str:
        return f"{self.verdict:<6} {self.check:<10} {plain(self.detail, 400)}"


@dataclass
class Report:
    """What verification has found, and what is believed of each run, by key."""

    runs: int = 0
    files: int = 0
    findings: list[Finding] = field(default_factory=list)
    trust: dict[str, Level] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return not self.failures()

    def failures(self) -> list[str]:
        return [finding.detail for finding in self.findings if finding.verdict == "FAILED"]

    def add(
        self, check: str, detail: str, failures: list[str] | None = None, verdict: Verdict = "ok"
    ) -> None:
        """A line for each failure, or one that says how it went."""
        if failures:
            self.findings += [
                Finding(check, "FAILED", sentence) for sentence in failures[:MOST_FAILURES]
            ]
            if len(failures) > MOST_FAILURES:
                self.findings.append(
                    Finding(check, "FAILED", f"and {len(failures) - MOST_FAILURES} more")
                )
        else:
            self.findings.append(Finding(check, verdict, detail))

    def to_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "runs": self.runs,
            "findings": [vars(f) for f in self.findings],
            "trust": self.trust,
        }
