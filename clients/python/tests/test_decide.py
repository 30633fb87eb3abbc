"""The decisions, without a network: when to send again, where, and how long to wait."""

from __future__ import annotations

import unittest
from typing import Any, List, Optional, Set

from quoral import Applied, NotFound, Overloaded, Unavailable, Unknown, types
from quoral import _decide as decide
from quoral._core import Call, Core, Sleep, Token, parse
from quoral._decide import Attempts, Broken, Budget, Endpoints
from quoral.errors import Details
from quoral.v1 import kv_pb2

NO, MAYBE = Applied.NO, Applied.MAYBE
REFUSED = Broken("UNAVAILABLE", "failed to connect to all addresses", NO, sent=False)
TOO_FEW = Broken("UNAVAILABLE", "too few replicas", NO)
LOST = Broken("UNAVAILABLE", "connection reset", MAYBE)
SILENT = Broken("DEADLINE_EXCEEDED", "", MAYBE)
BUSY = Broken("RESOURCE_EXHAUSTED", "busy", NO, retry_after=0.1)


def attempts(
    repeatable: bool = True, reads: bool = False, endpoints: int = 3, deadline: float = 10.0
) -> Attempts:
    return Attempts(0.0, deadline, reads=reads, repeatable=repeatable, endpoints=endpoints)


class TheBudget(unittest.TestCase):
    def test_runs_out_and_is_earned_again(self) -> None:
        budget = Budget(0.0)
        self.assertEqual(sum(budget.take(0.0) for _ in range(100)), int(decide.BUDGET_MOST))
        for _ in range(11):
            budget.request(0.0)
        self.assertEqual([budget.take(0.0) for _ in range(2)], [True, False])
        self.assertEqual([budget.take(3.0) for _ in range(4)], [True, True, True, False])
        self.assertEqual(sum(budget.take(1e9) for _ in range(100)), int(decide.BUDGET_MOST), "it has a most")

    def test_a_clock_that_steps_back_earns_nothing(self) -> None:
        budget = Budget(100.0)
        for _ in range(100):
            budget.take(100.0)
        self.assertFalse(budget.take(0.0))
        self.assertFalse(budget.take(100.0))


class TheEndpoints(unittest.TestCase):
    def test_take_turns(self) -> None:
        endpoints = Endpoints(3)
        self.assertEqual([endpoints.pick(0.0, set()) for _ in range(4)], [0, 1, 2, 0])

    def test_one_that_failed_comes_last_for_a_while(self) -> None:
        endpoints = Endpoints(3)
        endpoints.failed(1, 0.0)
        self.assertNotIn(1, [endpoints.pick(0.5, set()) for _ in range(6)])
        self.assertIn(1, [endpoints.pick(1.0, set()) for _ in range(3)])
        endpoints.failed(1, 1.0)
        self.assertNotIn(1, [endpoints.pick(2.5, set()) for _ in range(6)], "the second time it is longer")
        endpoints.answered(1)
        self.assertIn(1, [endpoints.pick(2.5, set()) for _ in range(3)])

    def test_if_all_failed_the_one_that_is_due_first(self) -> None:
        endpoints = Endpoints(2)
        endpoints.failed(0, 0.1)
        endpoints.failed(1, 0.0)
        self.assertEqual(endpoints.pick(0.2, set()), 1)
        self.assertEqual(endpoints.pick(0.2, {1}), 0, "but one that this request has not tried comes first")
        self.assertEqual(Endpoints(1).pick(0.0, {0}), 0)

    def test_none_is_refused(self) -> None:
        with self.assertRaises(ValueError):
            Endpoints(0)


class TheAttempts(unittest.TestCase):
    def after(
        self, request: Attempts, broken: Broken, now: float = 0.0, chance: float = 0.5
    ) -> Optional[float]:
        return request.failed(now, 0, broken, chance, Budget(now))

    def test_what_is_sent_again(self) -> None:
        for broken, always, with_id in [
            (REFUSED, True, True),
            (TOO_FEW, True, True),
            (BUSY, True, True),
            (LOST, False, True),
            (SILENT, False, True),
            (Broken("INTERNAL", "disk", NO), True, True),
            (Broken("INVALID_ARGUMENT", "", NO), False, False),
            (Broken("NOT_FOUND", "", NO), False, False),
            (Broken("UNIMPLEMENTED", "", NO), False, False),
            (Broken("FAILED_PRECONDITION", "", NO), False, False),
        ]:
            self.assertEqual(self.after(attempts(repeatable=False), broken) is not None, always, broken)
            self.assertEqual(self.after(attempts(repeatable=True), broken) is not None, with_id, broken)
            self.assertEqual(self.after(attempts(False, reads=True), broken) is not None, with_id, broken)

    def test_full_jitter(self) -> None:
        request = attempts(deadline=1e6)
        self.assertEqual(self.after(request, TOO_FEW, chance=0.0), 0.0)
        waits = [self.after(request, TOO_FEW, chance=1.0) for _ in range(8)]
        self.assertEqual(waits, [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0])

    def test_a_delay_is_waited_for(self) -> None:
        self.assertEqual(self.after(attempts(), BUSY, chance=0.0), 0.1)
        self.assertIsNone(
            self.after(attempts(deadline=0.1), BUSY, chance=0.0), "beyond the deadline: at once"
        )

    def test_the_deadline_bounds_each_attempt(self) -> None:
        self.assertEqual(attempts().time_of_attempt(0.0), 5.0)
        self.assertEqual(attempts().time_of_attempt(9.5), 0.5)
        self.assertEqual(attempts(endpoints=1).time_of_attempt(0.0), 10.0)
        self.assertEqual(attempts(repeatable=False).time_of_attempt(0.0), 10.0)
        self.assertLessEqual(attempts().time_of_attempt(10.0), 0.0)

    def test_the_budget_stops_retries_that_load_the_cluster(self) -> None:
        budget = Budget(0.0)
        while budget.take(0.0):
            pass
        self.assertIsNone(attempts().failed(0.0, 0, TOO_FEW, 0.5, budget))
        self.assertIsNotNone(attempts().failed(0.0, 0, REFUSED, 0.5, budget), "what never left costs nothing")

    def test_maybe_stays_maybe(self) -> None:
        request = attempts()
        self.assertIs(request.applied(), NO)
        self.after(request, TOO_FEW)
        self.assertIs(request.applied(), NO)
        self.after(request, LOST)
        self.after(request, TOO_FEW)
        self.assertIs(request.applied(), MAYBE)
        reading = attempts(reads=True)
        self.after(reading, LOST)
        self.assertIs(reading.applied(), NO, "a read changes nothing")

    def test_the_error_is_the_one_that_says_most(self) -> None:
        told = Broken("UNAVAILABLE", "too few", NO, Details(required=2))
        unsure = Broken("DEADLINE_EXCEEDED", "too few in time", MAYBE, Details(required=2, received=1))
        final = Broken("INVALID_ARGUMENT", "key", NO, Details())
        for failures, verdict in [
            ([told, REFUSED], told),
            ([REFUSED, told, REFUSED], told),
            ([REFUSED], REFUSED),
            ([LOST, told], LOST),
            ([unsure, SILENT, told], unsure),
            ([told, final], final),
        ]:
            request = attempts()
            for broken in failures:
                self.after(request, broken)
            self.assertIs(request.verdict(), verdict, failures)

    def test_all_are_tried_before_one_again(self) -> None:
        request = attempts()
        seen: List[Set[int]] = []
        for endpoint in (2, 0, 1):
            request.failed(0.0, endpoint, TOO_FEW, 0.5, Budget(0.0))
            seen.append(set(request.tried))
        self.assertEqual(seen, [{2}, {0, 2}, set()])


class Scripted:
    """Carries out an operation with given outcomes, on a clock of its own. An attempt takes `takes` seconds."""

    def __init__(
        self, outcomes: List[Any], endpoints: int = 3, takes: float = 0.01, timeout: float = 5.0
    ) -> None:
        self.now = 100.0
        self.core = Core([f"n{n}" for n in range(endpoints)], timeout, lambda: self.now, lambda: 0.5)
        self.outcomes = outcomes
        self.takes = takes
        self.calls: List[Any] = []
        self.asked: List[int] = []

    def run(self, op: Any) -> Any:
        try:
            effect = next(op)
            while True:
                if isinstance(effect, Sleep):
                    self.now += effect.seconds
                    effect = op.send(None)
                    continue
                assert isinstance(effect, Call)
                copy = type(effect.request)()
                copy.CopyFrom(effect.request)
                self.calls.append(copy)
                self.asked.append(effect.endpoint)
                outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
                self.now += effect.timeout if outcome is SILENT else self.takes
                effect = op.send(outcome)
        except StopIteration as done:
            return done.value

    def put(self, **fields: Any) -> Any:
        item = types.Put("k", "v", "default", **fields)
        return self.run(self.core.put(item, self.core.deadline(None)))


DONE = kv_pb2.PutResponse(w=2, acks=2)


class TheOperations(unittest.TestCase):
    def test_a_put_has_an_id_and_keeps_it(self) -> None:
        script = Scripted([LOST, BUSY, DONE])
        self.assertEqual(script.put().acks, 2)
        self.assertEqual(len({call.request_id for call in script.calls}), 1)
        self.assertEqual(len(script.calls[0].request_id), 16)
        self.assertEqual(len(set(script.asked)), 3, "each attempt asks another node")
        other = Scripted([DONE])
        other.put()
        self.assertNotEqual(other.calls[0].request_id, script.calls[0].request_id)

    def test_without_an_id_nothing_indefinite_is_sent_again(self) -> None:
        script = Scripted([LOST, DONE])
        with self.assertRaises(Unknown) as raised:
            script.put(request_id=None)
        self.assertIs(raised.exception.applied, MAYBE)
        self.assertEqual(len(script.calls), 1)
        self.assertEqual(script.calls[0].request_id, b"")

    def test_the_deadline_holds_when_nobody_answers(self) -> None:
        for outcome, error in [
            (SILENT, Unknown),
            (REFUSED, Unavailable),
            (TOO_FEW, Unavailable),
            (BUSY, Overloaded),
        ]:
            script = Scripted([outcome])
            with self.assertRaises(error):
                script.put()
            self.assertLessEqual(script.now, 105.0 + 0.011, outcome)
            self.assertGreater(len(script.calls), 2, outcome)

    def test_each_node_has_less_time_than_its_attempt(self) -> None:
        script = Scripted([SILENT])
        with self.assertRaises(Unknown):
            script.put()
        self.assertEqual(script.calls[0].timeout_ms, 2250)
        self.assertLess(sum(call.timeout_ms for call in script.calls), 5000)

    def test_a_storm_is_bounded(self) -> None:
        script = Scripted([TOO_FEW], takes=0.0)
        for _ in range(100):
            with self.assertRaises(Unavailable):
                item = types.Put("k", "v")
                script.run(script.core.put(item, script.now + 0.2))
        self.assertLess(
            len(script.calls), 100 + 20 + 10 + 30, "retries are a part of requests, whatever happens"
        )

    def test_errors_carry_what_is_known(self) -> None:
        with self.assertRaises(NotFound) as raised:
            Scripted([Broken("NOT_FOUND", "no keyspace", NO)]).put()
        self.assertEqual(raised.exception.keyspace, "default")
        with self.assertRaises(Overloaded) as busy:
            Scripted([Broken("RESOURCE_EXHAUSTED", "busy", NO, retry_after=60.0)]).put()
        self.assertEqual(busy.exception.retry_after, 60.0)
        script = Scripted([Broken("UNAVAILABLE", "", NO)])
        with self.assertRaises(Unavailable) as none:
            script.run(script.core.put(types.Put("k", "v"), script.now))
        self.assertIs(none.exception.applied, NO)
        self.assertEqual(script.calls, [], "without time nobody is asked")

    def test_a_session_carries_its_token(self) -> None:
        script, token = Scripted([LOST, kv_pb2.PutResponse(session=b"one")]), Token(b"")
        script.run(script.core.put(types.Put("k", "v"), script.now + 5, token))
        self.assertTrue(all(call.HasField("session") and call.session == b"" for call in script.calls))
        script.outcomes = [kv_pb2.GetResponse(session=b"two")]
        script.run(script.core.get(types.Get("k"), script.now + 5, token))
        self.assertEqual((script.calls[-1].session, token.token), (b"one", b"two"))

    def test_endpoints_parse(self) -> None:
        self.assertEqual(parse("a:1, b:2,"), ["a:1", "b:2"])
        self.assertEqual(parse(["a:1", "b:2"]), ["a:1", "b:2"])


if __name__ == "__main__":
    unittest.main()
