"""The report of a verification: the result of each check and the level of trust of each run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from qbench.util.text import clean_line

CheckVerdict = Literal["ok", "note", "FAILED"]
TrustLevel = Literal["claimed", "verified", "reproduced"]
TRUST_LEVELS: tuple[TrustLevel, ...] = ("claimed", "verified", "reproduced")
"""All levels, in ascending order."""
MAX_FAILURES_PER_CHECK = 20
"""How many failures of one check the report lists; the others are only counted."""


@dataclass(frozen=True)
class CheckResult:
    """One line of the report."""

    check: str
    verdict: CheckVerdict
    detail: str

    def __str__(self) -> str:
        return f"{self.verdict:<6} {self.check:<10} {clean_line(self.detail, 400)}"


@dataclass
class VerificationReport:
    """The results of all checks of one bundle, and the trust in each of its runs."""

    runs: int = 0
    files: int = 0
    findings: list[CheckResult] = field(default_factory=list)
    trust: dict[str, TrustLevel] = field(default_factory=dict)
    """The level of each run, by the run's key."""

    @property
    def passed(self) -> bool:
        return not self.failures()

    def failures(self) -> list[str]:
        """Return the details of all failed checks."""
        return [finding.detail for finding in self.findings if finding.verdict == "FAILED"]

    def add_check(self, check: str, detail: str, failures: list[str] | None = None) -> None:
        """Add a line for each failure of a check, or one line with `detail` if there is none."""
        if not failures:
            self.findings.append(CheckResult(check, "ok", detail))
            return
        listed = failures[:MAX_FAILURES_PER_CHECK]
        self.findings += [CheckResult(check, "FAILED", failure) for failure in listed]
        if len(failures) > len(listed):
            rest = f"and {len(failures) - len(listed)} more"
            self.findings.append(CheckResult(check, "FAILED", rest))

    def add_note(self, check: str, detail: str) -> None:
        """Add a line that the reader should know but that is no failure."""
        self.findings.append(CheckResult(check, "note", detail))

    def to_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "runs": self.runs,
            "findings": [vars(finding) for finding in self.findings],
            "trust": self.trust,
        }
