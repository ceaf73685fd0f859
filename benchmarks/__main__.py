"""`python -m benchmarks`: direct, nginx and Farebox in one run; a table, and JSON with `--save`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime as dt
import json
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import parts, processes, report, targets
from benchmarks.processes import Cores

_RESULTS = Path(__file__).with_name("results")
_TARGETS = ("direct", "nginx", "farebox")


def main() -> int:
    options = _options()
    processes.allow_many_files()
    cores = Cores.of_this_machine()
    plan = parts.QUICK if options.quick else parts.FULL
    facts = report.machine()
    samples: list[parts.Sample] = []
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="farebox-bench-")))
        provider = stack.enter_context(targets.provider(cores))
        under_test = [provider] if "direct" in options.targets else []
        for name, start in (("nginx", targets.nginx), ("farebox", targets.farebox)):
            if name not in options.targets:
                continue
            try:
                under_test.append(stack.enter_context(start(provider.port, directory, cores)))
            except targets.TargetFailed as error:
                print(f"without {name}: {error}", file=sys.stderr)
        try:
            chosen = [name for name in parts.PARTS if name in options.parts]
            for sample in parts.measure(chosen, under_test, plan, cores):
                samples.append(sample)
                print(_progress(sample), file=sys.stderr, flush=True)
        except parts.RunFailed as error:
            print(f"stopped: {error}", file=sys.stderr)
    samples = report.with_added_latency(samples)
    print(report.text(samples, facts))
    print(f"\n{time.monotonic() - begun:.0f} s")
    if options.save:
        print(f"saved as {_save(samples, facts, plan)}")
    missing = set(options.targets) - {sample.target for sample in samples} - {"nginx"}
    return 1 if missing or any(sample.figures["errors"] for sample in samples) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round, about a minute")
    parser.add_argument(
        "--parts",
        type=_Among(tuple(parts.PARTS)),
        default=list(parts.PARTS),
        help=f"some of {','.join(parts.PARTS)}",
    )
    parser.add_argument(
        "--targets",
        type=_Among(_TARGETS),
        default=list(_TARGETS),
        help=f"some of {','.join(_TARGETS)}",
    )
    parser.add_argument("--save", action="store_true", help="write JSON into benchmarks/results")
    return parser.parse_args()


class _Among:
    """A comma-separated choice."""

    def __init__(self, known: tuple[str, ...]) -> None:
        self._known = known

    def __call__(self, value: str) -> list[str]:
        names = value.split(",")
        unknown = [name for name in names if name not in self._known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(self._known)}")
        return names


def _progress(sample: parts.Sample) -> str:
    figures = sample.figures
    rate = f"{figures['requests_per_second']:.0f} requests/s" if figures["p50_ms"] else "held"
    return f"  {sample.part} {sample.target} {sample.round + 1}: {rate}"


def _save(samples: list[parts.Sample], facts: dict[str, str], plan: parts.Plan) -> Path:
    now = dt.datetime.now(dt.UTC)
    _RESULTS.mkdir(exist_ok=True)
    path = _RESULTS / f"{now:%Y-%m-%d-%H%M%S}-{facts['commit']}.json"
    content = {
        "time": now.isoformat(timespec="seconds"),
        "machine": facts,
        "plan": dataclasses.asdict(plan),
        "samples": [dataclasses.asdict(sample) for sample in samples],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


if __name__ == "__main__":
    sys.exit(main())
