"""Chooses among plans that passed their checks, by their speed on this device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from misgnet_runtime.bundle.manifest import EngineEntry
from misgnet_runtime.bundle.reader import Bundle
from misgnet_runtime.engines.tensorrt.plan_cache import FORMAT, Activation
from misgnet_runtime.errors import MisgnetError
from misgnet_runtime.formatting import timestamp
from misgnet_runtime.inference.choice import (
    Choice,
    ChoiceScope,
    Chosen,
    Variant,
    library_of,
    plans_of,
    precision_of,
)
from misgnet_runtime.inference.comparison import Candidate, NotRun, choose, compare, is_faster, usual_setting
from misgnet_runtime.inference.tuned import ONE_PAIR, Measurement, Setting
from misgnet_runtime.log import EventLog


@dataclass(frozen=True, kw_only=True)
class Variants:
    """The engines to choose from."""

    bundle: Bundle
    # Engines whose plans are active, with their results.
    passed: Sequence[tuple[EngineEntry, Activation]]
    # Engines that failed, and why.
    refused: Sequence[tuple[EngineEntry, str]] = ()
    # Option that leaves one precision to choose from, such as "--choose fp16"; empty: none.
    option: str = ""

    def entries(self) -> list[EngineEntry]:
        """Returns the engines that passed, the default first: FP16 before INT8, as the more accurate one."""
        return sorted((entry for entry, _ in self.passed), key=lambda entry: precision_of(entry) == "INT8")


def choose_engines(variants: Variants, scope: ChoiceScope, seconds: float, log: EventLog) -> Choice:
    """Measures the engines that passed, and chooses one for each workload.

    One pair at a time is measured with one stream and batch 1, many pairs with the streams and the batch for scenes.
    If nothing can be measured, the default is chosen.

    Args:
        variants: At least one of them passed.
        scope: The bundle and the device.
        seconds: Measuring time per engine, half of it for each workload.
        log: Receives progress, and a warning if something could not be measured.
    """
    largest = variants.bundle.manifest.interface.max_batch
    share = seconds * len(variants.passed) / 2
    latency, singles = _choose(variants, "one pair", lambda _: ONE_PAIR, share, log)
    throughput, many = _choose(variants, "many pairs", lambda entry: usual_setting(entry, largest), share, log)
    found = [_passed(entry, activation, singles, many) for entry, activation in variants.passed]
    failed = [Variant(entry.name, precision_of(entry), reason) for entry, reason in variants.refused]
    return Choice(
        format=FORMAT, created=timestamp(), scope=scope, latency=latency, throughput=throughput,
        variants=[*found, *failed],
    )  # fmt: skip


def _choose(
    variants: Variants, workload: str, setting_of: Callable[[EngineEntry], Setting], seconds: float, log: EventLog
) -> tuple[Chosen, list[Measurement]]:
    """Returns the engine chosen for a workload, and all measurements; ``seconds``: measuring time of all engines."""
    default, *others = (Candidate(entry, setting_of(entry)) for entry in variants.entries())
    if not others:
        return Chosen(default.entry.name, _only(variants)), []
    found, not_run = _measured(variants.bundle, default, others, seconds, log)
    for each in not_run:
        log.warning(f"for {workload}, {each.engine} was not measured: {each.reason}", engine=each.engine)
    if len(found) < 2:
        chosen = precision_of(default.entry)
        log.warning(f"for {workload}, no engine was compared with another; {chosen} is chosen")
        return Chosen(default.entry.name, f"the engines could not be compared here; {chosen} is the default"), found
    precisions = {entry.name: precision_of(entry) for entry, _ in variants.passed}
    fastest = _fastest(found, precisions)
    return Chosen(fastest.engine, _why(fastest, found, precisions)), found


def _measured(
    bundle: Bundle, default: Candidate, others: list[Candidate], seconds: float, log: EventLog
) -> tuple[list[Measurement], list[NotRun]]:
    try:
        return compare(bundle, default, others, seconds, log)
    except (MisgnetError, OSError) as error:  # OSError: no process can be started
        return [], [NotRun(default.label(), str(error))]


def _only(variants: Variants) -> str:
    """Returns why the only engine that is left was chosen."""
    failed = " and ".join(entry.name for entry, _ in variants.refused)
    if failed:
        return f"the only engine that passed here, as {failed} failed"
    return f"as requested by {variants.option}" if variants.option else "the only engine that was compiled here"


def _fastest(found: list[Measurement], precisions: dict[str, str]) -> Measurement:
    """Returns the fastest engine; one of another precision than the default's must beat all in that precision."""
    default, own = found[0], precisions[found[0].engine]
    best = choose([each for each in found if precisions[each.engine] == own], default)
    return choose([best, *(each for each in found if precisions[each.engine] != own)], best)


def _why(chosen: Measurement, found: list[Measurement], precisions: dict[str, str]) -> str:
    """Returns how the chosen engine compares with the fastest one of another precision."""
    own = precisions[chosen.engine]
    others = [each for each in found if precisions[each.engine] != own]
    if not others:
        return f"the fastest here of {len(found)} engines in {own} ({_ms(chosen):.2f} ms)"
    other = max(others, key=lambda each: each.ratio)
    their = precisions[other.engine]
    times = f"({_ms(chosen):.2f} against {_ms(other):.2f} ms)"
    if is_faster(chosen, other):
        return f"{own} is faster than {their} here {times}"
    return f"neither {own} nor {their} is faster here beyond the spread {times}; {own} is more accurate"


def _passed(entry: EngineEntry, activation: Activation, singles: list[Measurement], many: list[Measurement]) -> Variant:
    one, all_pairs = (next((each for each in found if each.engine == entry.name), None) for found in (singles, many))
    verdict = activation.parity.verdict if activation.parity else None
    return Variant(
        entry.name, precision_of(entry), library=library_of(entry), plans=plans_of(activation),
        profiles=activation.plans[entry.graph].profiles,
        golden=activation.golden, gate=verdict.reason if verdict else "no gate was run",
        ms_per_pair=_ms(one) if one else None, pairs_per_second=all_pairs.pairs_per_second if all_pairs else None,
        measurements=[each for each in (one, all_pairs) if each],
    )  # fmt: skip


def _ms(measurement: Measurement) -> float:
    """Returns milliseconds per pair."""
    return 1000 / measurement.pairs_per_second
