"""`python -m tests.chaos`: runs with several seeds; exits with 1 and the evidence if one fails."""

from __future__ import annotations

import argparse
import sys
from collections import Counter

from tests.chaos.run import Plan, Report, run

MAX_SHOWN = 40


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.chaos", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=300, help="a seed")
    parser.add_argument("--faults", type=int, default=30, help="a seed")
    parser.add_argument("--seconds", type=float, default=45.0, help="under fire, a seed")
    parser.add_argument("--fake-only", action="store_true", help="no worker with real models")
    args = parser.parse_args()
    num_bad = 0
    for seed in args.seeds:
        plan = Plan(seed, args.jobs, args.faults, args.seconds, with_real=not args.fake_only)
        report = run(plan)
        sys.stdout.write(words_of(report))
        sys.stdout.flush()
        num_bad += bool(report.wrong)
    return 1 if num_bad else 0


def words_of(report: Report) -> str:
    """Say what a run was and what came of it."""
    plan = report.plan
    lines = [
        f"seed {plan.seed}: {plan.num_jobs} jobs ({report.num_poison} poison), "
        f"{len(report.faults)} faults in {plan.length_s:g} s; {report.seconds:.0f} s in all",
        f"  faults   {_counts(report.kinds)}",
        f"  jobs     {_counts(report.statuses)}; {report.num_reruns} reruns, "
        f"{report.num_deaths} processes died, {report.num_forgotten} jobs forgotten by the queue",
        f"  clients  {_counts(report.endings)}",
        f"  verdict  {'GOOD' if not report.wrong else 'BAD'} ({report.num_audits} audits)",
    ]
    if report.wrong:
        lines += [f"  wrong    {line}" for line in report.wrong[:MAX_SHOWN]]
        lines += [f"  ... {len(report.wrong)} in all; logs in {report.evidence}; the schedule:"]
        lines += [f"    {fault}" for fault in report.faults]
    return "\n".join(lines) + "\n"


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items()))


if __name__ == "__main__":
    sys.exit(main())
