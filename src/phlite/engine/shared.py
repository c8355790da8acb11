"""One engine for several threads and asyncio tasks: whoever waits for a token runs the steps for all.

There is no thread of its own while only threads ask: one of the callers leads, that is, runs `Engine.step` outside of
the lock, and the others sleep until it is through. So Ctrl-C reaches a caller that leads, and nothing runs when nobody
waits. asyncio tasks must not lead; while any of them waits, a driver thread takes part like a caller.

New and cancelled sequences are noted while somebody leads, and applied before the next step.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from phlite.engine.constraint import TokenConstraint
from phlite.engine.engine import Engine
from phlite.engine.params import SamplingParams
from phlite.engine.sequence import FinishReason, Sequence

__all__ = ["SharedEngine"]


class SharedEngine:
    """The same engine, safe to call from any thread. Callers read tokens from `Sequence.output_ids`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.condition = threading.Condition()
        self.leader: int | None = None
        self.arrivals: deque[Sequence] = deque()
        self.departures: deque[tuple[Sequence, FinishReason]] = deque()
        self.listeners: dict[int, tuple[Sequence, Callable[[], object]]] = {}
        self.driver: threading.Thread | None = None
        self.applying = False

    def add(
        self,
        prompt_ids: Iterable[int],
        params: SamplingParams | None = None,
        *,
        constraint: TokenConstraint | None = None,
        on_progress: Callable[[], object] | None = None,
    ) -> Sequence:
        """Queue a prompt without waiting for a step to end.

        on_progress: called from the leading thread after each step until the sequence has ended; with it a driver
                     thread does the work, without it somebody must call `wait`. It may raise RuntimeError to say that
                     it is gone
        raises:      as Engine.add
        """
        sequence = self.engine.build(prompt_ids, params, constraint=constraint)
        with self.condition:
            self.arrivals.append(sequence)
            if on_progress is not None:
                self.listeners[id(sequence)] = (sequence, on_progress)
                if self.driver is None:
                    self.driver = threading.Thread(target=self.drive, name="phlite-driver")
                    self.driver.start()
        return sequence

    def finish(self, sequence: Sequence, reason: FinishReason = "aborted") -> None:
        """End a sequence, at once or when the running step is over; nothing happens when it has ended."""
        me = threading.get_ident()
        with self.condition:
            if sequence.finish_reason is None:
                self.departures.append((sequence, reason))
            if self.leader in (None, me):
                self.apply_requests()
        self.retire(me)

    def abandon(self, sequence: Sequence) -> None:
        """Abort a sequence from a finalizer. The garbage collector may run it anywhere, so it never waits and leaves a
        step of its own thread alone; then the sequence ends before the next step.
        """
        self.departures.append((sequence, "aborted"))
        if self.condition.acquire(blocking=False):
            try:
                if self.leader is None:
                    self.apply_requests()
            finally:
                self.condition.release()

    def wait(self, sequence: Sequence, n_seen: int) -> None:
        """Return when the sequence has more than n_seen output ids, or has ended; lead steps until then.

        raises: what the step raised, in the thread that led it; the sequence is then still queued
        """
        me = threading.get_ident()
        try:
            while not has_progress(sequence, n_seen):
                with self.condition:
                    while self.leader not in (None, me) and not has_progress(sequence, n_seen):
                        self.condition.wait()
                    if has_progress(sequence, n_seen):
                        return
                    self.leader = me
                    self.apply_requests()
                self.engine.step()
                self.retire(me)
        except BaseException:
            self.retire(me)
            raise

    @contextmanager
    def lead(self) -> Iterator[None]:
        """Keep every other caller from the model while the body uses it beside the engine."""
        me = threading.get_ident()
        with self.condition:
            led_before = self.leader == me
            while self.leader not in (None, me):
                self.condition.wait()
            self.leader = me
        try:
            yield
        finally:
            if not led_before:
                self.retire(me)

    def drive(self) -> None:
        """Lead steps while any sequence has a listener. The driver thread's whole life."""
        me = threading.get_ident()
        while True:
            with self.condition:
                while self.leader not in (None, me):
                    self.condition.wait()
                self.apply_requests()
                if not self.listeners:
                    self.driver = None
                    return
                self.leader = me
            try:
                self.engine.step()
            except Exception as error:
                self.fail_listeners(error)
            self.retire(me)

    def apply_requests(self) -> None:
        """Queue what arrived and end what departed. The caller holds the lock and nobody else leads."""
        if self.applying:
            return
        self.applying = True
        try:
            while self.arrivals or self.departures:
                if self.arrivals:
                    self.engine.enqueue(self.arrivals[0])
                    self.arrivals.popleft()
                else:
                    self.engine.finish(*self.departures[0])
                    self.departures.popleft()
        finally:
            self.applying = False

    def retire(self, me: int) -> None:
        """Give up the lead, if this thread has it, and tell everybody what the step brought."""
        with self.condition:
            if self.leader != me:
                return
            self.leader = None
            for key, (sequence, on_progress) in list(self.listeners.items()):
                if sequence.finish_reason is not None:
                    del self.listeners[key]
                try:
                    on_progress()
                except RuntimeError:
                    # The listener's event loop has been closed: nobody can read this sequence any more.
                    self.listeners.pop(key, None)
                    self.departures.append((sequence, "aborted"))
            self.condition.notify_all()

    def fail_listeners(self, error: Exception) -> None:
        """End every listened sequence with the error of the driver's step."""
        with self.condition:
            for sequence, _ in self.listeners.values():
                sequence.error = error
                self.departures.append((sequence, "aborted"))
            self.apply_requests()


def has_progress(sequence: Sequence, n_seen: int) -> bool:
    """Whether there is an unseen token, or none will come."""
    return len(sequence.output_ids) > n_seen or sequence.finish_reason is not None
