"""The device time that each principal has used: a virtual time for each, as in start-time fair queueing."""

from collections.abc import Callable, Collection, Hashable

from weave.broker.admission.principal import Principal


class Turns:
    """A principal's virtual time is the device time, in seconds, that it has paid for. A principal that arrives or
    returns starts no lower than the lowest one present: absence earns no credit. A principal that has used more than
    the others keeps that debt, whether it stays connected or not. `clock` is in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._used: dict[Principal, float] = {}
        # The lowest virtual time of any principal that was present. Lower values need not be remembered.
        self._floor = 0.0
        # By running job. Each has its own device, and costs its payer as much time as passes.
        self._payers: dict[Hashable, Principal] = {}
        self._since = clock()

    def used(self, principal: Principal) -> float:
        """Its virtual time, as of the last bill(), stop() or advance()."""
        return max(self._used.get(principal, 0.0), self._floor)

    def bill(self, running: Hashable, payer: Principal) -> None:
        """Bill `payer` for `running` from now on."""
        self._settle()
        self._payers[running] = payer

    def stop(self, running: Hashable) -> None:
        """`running` has ended."""
        self._settle()
        del self._payers[running]

    def advance(self, present: Collection[Principal]) -> None:
        """`present`: the principals with queued or running jobs. If there are none, all debts are forgiven."""
        self._settle()
        least = min(map(self.used, present)) if present else max(self._used.values(), default=self._floor)
        self._floor = max(self._floor, least)
        self._used = {principal: used for principal, used in self._used.items() if used > self._floor}

    def _settle(self) -> None:
        now = self._clock()
        for payer in self._payers.values():
            self._used[payer] = self.used(payer) + now - self._since
        self._since = now
