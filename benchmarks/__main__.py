"""`python -m benchmarks`: what the gateway costs, next to others, in one run."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import parts, peers, processes, report, targets
from benchmarks.parts import Bench, Sample
from benchmarks.processes import Cores
from benchmarks.targets import Provider, Target, TargetFailed
from farebox.interpreter import allow_many_files

_TWO_WORKERS = "farebox-2"
_TARGETS = ("direct", *peers.PEERS, "farebox", _TWO_WORKERS)
_USUAL_TARGETS = ("direct", "nginx", "farebox")
_OPTIONAL = frozenset(peers.PEERS)


def main() -> int:
    options = _options()
    allow_many_files()
    cores = Cores.of_this_machine()
    plan = parts.QUICK if options.quick else parts.FULL if options.full else parts.NORMAL
    facts = report.machine() | _gateways(options)
    samples: list[Sample] = []
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="farebox-bench-")))
        provider = stack.enter_context(targets.provider(cores))
        under_test = list(_started(stack, options, provider, directory, cores))
        bench = Bench(plan, cores, provider, targets.direct(provider))
        try:
            measured = parts.measure(options.parts, under_test, bench)
            with contextlib.closing(measured):
                for sample in measured:
                    samples.append(sample)
                    print(_progress(sample), file=sys.stderr, flush=True)
        except (parts.RunFailed, TargetFailed) as error:
            print(f"stopped: {error}", file=sys.stderr)
    samples = report.with_added_latency(samples)
    print(report.text(samples, facts))
    print(f"\n{time.monotonic() - begun:.0f} s")
    if options.save and samples:
        command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
        print(f"saved as {report.save(samples, facts, plan, command)}")
    missing = set(options.targets) - {sample.target for sample in samples} - _OPTIONAL
    return 1 if missing or any(sample.figures.get("errors") for sample in samples) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--quick", action="store_true", help="one short round")
    length.add_argument("--full", action="store_true", help="five rounds, every size and pair")
    parser.add_argument(
        "--parts",
        type=_Among(tuple(parts.PARTS)),
        default=list(parts.USUAL),
        help=f"all, or some of {','.join(parts.PARTS)}; usually {','.join(parts.USUAL)}",
    )
    parser.add_argument(
        "--targets",
        type=_Among(_TARGETS),
        default=list(_USUAL_TARGETS),
        help=f"all, or some of {','.join(_TARGETS)}; usually {','.join(_USUAL_TARGETS)}",
    )
    parser.add_argument(
        "--farebox",
        type=Path,
        default=targets.PROGRAM,
        metavar="PROGRAM",
        help="the `farebox` to measure, which also says on which Python; usually this checkout's",
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="PROGRAM",
        help="the `farebox` of another checkout, to be measured beside it as `before`",
    )
    parser.add_argument("--save", action="store_true", help="write JSON into benchmarks/results")
    return parser.parse_args()


class _Among:
    """A comma-separated choice, in the order of what there is."""

    def __init__(self, known: tuple[str, ...]) -> None:
        self._known = known

    def __call__(self, value: str) -> list[str]:
        names = self._known if value == "all" else value.split(",")
        unknown = [name for name in names if name not in self._known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(self._known)}")
        return [name for name in self._known if name in names]


def _started(
    stack: contextlib.ExitStack,
    options: argparse.Namespace,
    provider: Provider,
    directory: Path,
    cores: Cores,
) -> Iterator[Target]:
    """The targets that are wanted and can be had."""
    for name in options.targets:
        if name == "direct":
            yield targets.direct(provider)
            continue
        try:
            if name in peers.PEERS:
                yield stack.enter_context(peers.PEERS[name](provider, directory, cores))
                continue
            gateways = [(options.farebox, name, 2 if name == _TWO_WORKERS else 1)]
            if name == "farebox" and options.against:
                gateways.insert(0, (options.against, "before", 1))
            for program, called, workers in gateways:
                gateway = targets.farebox(
                    provider,
                    directory,
                    cores,
                    name=called,
                    program=program.absolute(),
                    workers=workers,
                )
                yield stack.enter_context(gateway)
        except TargetFailed as error:
            print(f"without {name}: {error}", file=sys.stderr)


def _gateways(options: argparse.Namespace) -> dict[str, str]:
    """Which gateways are measured, and the Python that each runs on."""
    facts = {"farebox": _python_of(options.farebox)}
    if options.against:
        facts["before"] = _python_of(options.against)
    return facts


def _python_of(program: Path) -> str:
    """Its version and the compiler that built it."""
    command = [str(program.with_name("python")), "-c", "import sys; print(*sys.version.split())"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return f"Python {done.stdout.strip()}"


def _progress(sample: Sample) -> str:
    figures = sample.figures
    figure = next((name for name in _PROGRESS if figures.get(name)), "")
    shown = f"{_PROGRESS[figure]} {figures[figure]:.1f}" if figure else "done"
    return f"  {sample.part} {sample.target} {sample.round + 1}: {shown}"


_PROGRESS = {
    "start_seconds": "seconds",
    "kib_per_stream": "KiB/stream",
    "cpu_us_per_event_worker": "CPU µs/event",
    "cpu_us_per_request_worker": "CPU µs/request",
    "p50_ms": "p50 ms",
}


if __name__ == "__main__":
    processes.end_what_was_started_on_sigterm()
    sys.exit(main())
