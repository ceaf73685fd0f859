"""Deliberate faults in how upstreams that fail are dealt with: who is asked, when, and how often.

As in `faults`; here `why` says what it would do to somebody's requests.
"""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_VERDICTS = ("tests/proxy/test_verdicts.py",)
_HEALTH = ("tests/proxy/test_health.py",)
_BALANCE = ("tests/proxy/test_balance.py",)
_BUDGET = ("tests/proxy/test_budget.py",)
_SCENARIOS = ("tests/proxy/test_scenarios.py",)
_LATENCY = ("tests/proxy/test_latency.py", *_BALANCE)

VERDICTS = (
    Mutant(
        "own-fault-tried-elsewhere",
        "proxy/verdicts.py",
        "return self.fault is not Fault.REQUEST",
        "return True",
        "a prompt that is too long would be sent to every upstream there is",
        ("tests/proxy/test_turn.py",),
    ),
    Mutant(
        "slow-upstream-asked-again",
        "proxy/verdicts.py",
        '_SLOW = Verdict(Fault.PROVIDER, Says.FAILURE, "timeout")',
        '_SLOW = Verdict(Fault.PROVIDER, Says.FAILURE, "timeout", again=True)',
        "who has waited for half a minute would wait for two",
        _SCENARIOS,
    ),
    Mutant(
        "moderation-takes-a-provider-out",
        "proxy/verdicts.py",
        '"forbidden": Verdict(Fault.CREDENTIAL, Says.FAILURE',
        '"forbidden": Verdict(Fault.CREDENTIAL, Says.OUT',
        "one customer's improper prompt would close an upstream for everybody",
        _SCENARIOS,
    ),
    Mutant(
        "rate-limit-counted-as-failure",
        "proxy/verdicts.py",
        '"rate_limited": Verdict(Fault.PROVIDER, Says.REST',
        '"rate_limited": Verdict(Fault.PROVIDER, Says.FAILURE',
        "an upstream that says when to come back would be left alone for longer than that",
        (*_VERDICTS, *_HEALTH),
    ),
)

CIRCUIT = (
    Mutant(
        "opens-one-failure-late",
        "proxy/circuit.py",
        "if counted < enough:",
        "if counted <= enough:",
        "a failing upstream would get more requests than was configured",
        _HEALTH,
    ),
    Mutant(
        "pause-never-grows",
        "proxy/circuit.py",
        "words[OPENINGS] += 1",
        "pass",
        "an upstream that is down for an hour would be tried every five seconds",
        _HEALTH,
    ),
    Mutant(
        "pause-grows-without-end",
        "proxy/circuit.py",
        "pause = min(doubled, PAUSE_SECONDS_MAX)",
        "pause = doubled",
        "an upstream that is back would not be asked for a day",
        _HEALTH,
    ),
    Mutant(
        "shorter-rest-wins",
        "proxy/circuit.py",
        "words[RESTS_UNTIL] = max(words[RESTS_UNTIL], micros(until))",
        "words[RESTS_UNTIL] = micros(until)",
        "a second refusal with a shorter hint would end the rest that the first one asked for",
        _HEALTH,
    ),
    Mutant(
        "one-customer-opens-a-circuit",
        "proxy/circuit.py",
        "counted -= max(words[UNPAIRED] - 1, 0)",
        "pass",
        "requests that nobody can serve would close an upstream for all other customers",
        _HEALTH,
    ),
    Mutant(
        "limit-cut-with-every-refusal",
        "proxy/circuit.py",
        "if since_cut < (_CUT_SECONDS if answered else _CUT_AGAIN_SECONDS):",
        "if since_cut < 0:",
        "twenty refusals of one moment would cut an upstream's limit to the least",
        _HEALTH,
    ),
    Mutant(
        "limit-cut-by-who-is-away",
        "proxy/circuit.py",
        "_CUT_SECONDS if answered else _CUT_AGAIN_SECONDS",
        "_CUT_SECONDS",
        "an upstream that was away for ten seconds would come back for four requests at once",
        _HEALTH,
    ),
    Mutant(
        "limit-never-forgotten",
        "proxy/circuit.py",
        "words[LIMIT] = 0\n",
        "pass\n",
        "an upstream that was busy once would have a limit for ever",
        _HEALTH,
        within="def forget_limit",
    ),
)

HEALTH = (
    Mutant(
        "place-never-given-back",
        "proxy/seat.py",
        "seat.words[seat.place] -= 1",
        "pass",
        "an upstream would be full after as many requests as it has places",
        _HEALTH,
    ),
    Mutant(
        "probe-kept-by-who-gave-up",
        "proxy/seat.py",
        "seat.own.release(self)\n",
        "pass\n",
        "a client that leaves during a probe would keep its upstream out for ever",
        _HEALTH,
    ),
    Mutant(
        "everybody-probes",
        "proxy/seat.py",
        "if place.probe and not self._claim(place, now, account):",
        "if place.probe and not now:",
        "an upstream that comes back would be met by all requests at once",
        _HEALTH,
    ),
    Mutant(
        "late-answer-closes-circuit",
        "proxy/breaker.py",
        "if not mine or (until and until != self._probed):\n"
        "                return  # said late, of before the opening",
        "if not mine:\n                return",
        "an answer from before the opening would send everybody back to an upstream that is down",
        _HEALTH,
    ),
    Mutant(
        "first-word-ends-a-run-of-failures",
        "proxy/seat.py",
        "if self.words[UNTIL]:  # otherwise it breaks no run of failures",
        "if self.words[UNEASY]:",
        "an upstream that cuts every answer in its middle would never be found out",
        _SCENARIOS,
    ),
    Mutant(
        "rest-as-long-as-they-like",
        "proxy/health.py",
        "min(hint, circuit.REST_SECONDS_MAX)",
        "hint",
        "one absurd retry-after would take an upstream out for a year",
        _HEALTH,
    ),
    Mutant(
        "every-model-finds-out-by-itself",
        "proxy/health.py",
        'if verdict.scope == "upstream":',
        'if verdict.scope != "":',
        "an absent provider would be found out once for each of its models",
        _HEALTH,
    ),
)

BALANCE = (
    Mutant(
        "weights-ignored",
        "proxy/balance.py",
        "candidate.weight / min(by, _SLOWER_MAX)",
        "1 / min(by, _SLOWER_MAX)",
        "an upstream with twice the quota would get half of the requests",
        _BALANCE,
    ),
    Mutant(
        "affinity-without-bound",
        "proxy/balance.py",
        "key=lambda equal: equal.in_flight > _SHARE_MAX * mean * equal.weight + _MORE_THAN_SHARE",
        "key=lambda equal: False",
        "one popular prompt would put all its requests on one upstream, however busy",
        _BALANCE,
    ),
    Mutant(
        "outlier-first",
        "proxy/balance.py",
        "ranked.sort(key=lambda equal: equal.is_outlier)  # a stable sort",
        "pass",
        "an upstream that is ten times slower than its equals would get its whole share",
        _BALANCE,
    ),
    Mutant(
        "load-ignored",
        "proxy/balance.py",
        "chosen = other if _is_rather(other, one) else one",
        "chosen = one",
        "requests would go on to an upstream that piles them up",
        _BALANCE,
    ),
    Mutant(
        "priorities-crossed",
        "proxy/balance.py",
        "    return tuple(order)",
        "    return tuple(reversed(order))",
        "the expensive fallback would be asked first",
        _BALANCE,
    ),
)

BUDGET = (
    Mutant(
        "retries-unbounded",
        "proxy/budget.py",
        "return tally.extra + 1.0 <= self.fraction * tally.first + floor",
        "return bool(tally)",
        "a provider in trouble would get every request three times",
        _BUDGET,
    ),
    Mutant(
        "retries-for-ever-counted",
        "proxy/budget.py",
        "self.extra *= left",
        "pass",
        "after one bad minute nothing would be tried again for the rest of the day",
        _BUDGET,
    ),
    Mutant(
        "hedge-without-knowledge",
        "proxy/latency.py",
        "if self._histogram.seen < SAMPLES_MIN:",
        "if not self._histogram.seen:",
        "the second request ever would be hedged after what the first one took",
        _LATENCY,
    ),
)

_TURN = ("tests/proxy/test_turn.py", *_SCENARIOS)

TURN = (
    Mutant(
        "hint-ignored",
        "proxy/turn.py",
        "self._ready_not_before(ask.number, now + hint)",
        "self._ready_not_before(ask.number, now)",
        "a provider that named a moment would be asked at once, and refuse for longer",
        _TURN,
    ),
    Mutant(
        "pause-without-backoff",
        "proxy/turn.py",
        "pause = _PAUSE_SECONDS * 2 ** (times - 1)",
        "pause = _PAUSE_SECONDS",
        "a second failure would be answered as quickly as the first",
        _TURN,
    ),
    Mutant(
        "attempts-unbounded",
        "proxy/turn.py",
        "return self.attempts >= max(ATTEMPTS_MAX, len(self.order))",
        "return self.attempts >= 100",
        "one request at two upstreams would become six",
        _TURN,
    ),
    Mutant(
        "tools-run-twice",
        "proxy/turn.py",
        "if not verdict.again or self.once or times >= ASKED_MAX:",
        "if not verdict.again or times >= ASKED_MAX:",
        "tools that a provider runs for a request would run a second time",
        _TURN,
    ),
    Mutant(
        "waits-beyond-the-end",
        "proxy/turn.py",
        "left = min(self.ends_at - now, WAITS_SECONDS_MAX - self._waited)",
        "left = WAITS_SECONDS_MAX - self._waited",
        "a request would wait for an upstream that it has no time left to hear",
        _TURN,
    ),
    Mutant(
        "repeats-without-budget",
        "proxy/turn.py",
        "elif not self.means.budget.allows(upstream.name, now):",
        "elif not self.means.budget:",
        "nobody would count who is refused a repetition, and clients would wait for it in vain",
        _TURN,
    ),
    Mutant(
        "own-fault-not-the-end",
        "proxy/turn.py",
        "if not verdict.elsewhere:",
        "if not verdict:",
        "an application's mistake would be told as the provider's",
        _TURN,
    ),
    Mutant(
        "hedge-beside-a-hint",
        "proxy/turn.py",
        "if self._hedged or asked_for_less or self.once:",
        "if self._hedged or self.once:",
        "a provider that asked for less would get more",
        _TURN,
    ),
    Mutant(
        "first-word-is-a-whole-answer",
        "proxy/attempt.py",
        "ask.place.spoke()",
        "ask.place.seat.served(now, ask.place.account)",
        "an upstream that breaks every stream in its middle would never be left alone",
        _SCENARIOS,
    ),
    Mutant(
        "place-of-a-failure-kept",
        "proxy/attempt.py",
        "        self.ask.place.close()\n        self.share.close()\n",
        "        self.share.close()\n",
        "failed attempts would count as being in flight for ever",
        _SCENARIOS,
    ),
    Mutant(
        "lost-attempt-not-booked",
        "proxy/attempt.py",
        "if isinstance(error, trio.Cancelled) and sent is not None and sent.contacted:",
        "if isinstance(error, trio.Cancelled) and sent is None:",
        "what a provider bills for an attempt that another one overtook would be in no book",
        _SCENARIOS,
    ),
    Mutant(
        "silence-taken-for-failure",
        "proxy/attempt.py",
        "EventStatus.UNKNOWN if unknown else EventStatus.FAILED",
        "EventStatus.FAILED",
        "what a provider may bill for an answer that came too late would not be looked into",
        _SCENARIOS,
    ),
    Mutant(
        "stream-never-whole-for-health",
        "proxy/relay.py",
        "means.health.served(upstream, now, account=account)",
        "pass",
        "five failures among a thousand streams would count as five in a row",
        _SCENARIOS,
    ),
)

UPSTREAM_MUTANTS: tuple[Mutant, ...] = (*VERDICTS, *CIRCUIT, *HEALTH, *BALANCE, *BUDGET, *TURN)
