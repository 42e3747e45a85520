"""How much of the GPU each principal has used: a virtual time for each, as in start-time fair queueing."""

from collections.abc import Callable, Collection

from weave.broker.principal import Principal


class Turns:
    """A principal's virtual time is the seconds of GPU that it has paid for. One that arrives, or returns, starts no
    earlier than the least of those that are present, so that nobody is owed the past; but one that has used more than
    the others keeps that debt, whether it stays connected or not. `clock` is in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._used: dict[Principal, float] = {}
        # No lower than it was for any principal that is present. Below it nothing needs to be remembered.
        self._floor = 0.0
        self._payer: Principal | None = None
        self._since = clock()

    def used(self, principal: Principal) -> float:
        """Its virtual time, as of the last bill() or advance()."""
        return max(self._used.get(principal, 0.0), self._floor)

    def bill(self, payer: Principal | None) -> None:
        """The time that passes from now on is this principal's."""
        self._settle()
        self._payer = payer

    def advance(self, present: Collection[Principal]) -> None:
        """`present` are those whose jobs wait or run. Where there are none nobody waits for anybody, and all debts are
        forgiven."""
        self._settle()
        least = min(map(self.used, present)) if present else max(self._used.values(), default=self._floor)
        self._floor = max(self._floor, least)
        self._used = {principal: used for principal, used in self._used.items() if used > self._floor}

    def _settle(self) -> None:
        now = self._clock()
        if self._payer is not None:
            self._used[self._payer] = self.used(self._payer) + now - self._since
        self._since = now
