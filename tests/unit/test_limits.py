"""The limits of each principal, without a daemon and with the time as the test sets it."""

from collections import Counter
from typing import Any, cast

import pytest

from weave.broker.admission.limits import Admission, TokenBucket, Unread
from weave.broker.admission.principal import UNKNOWN, Principal, principal_of
from weave.config.child_configs import Access, BrokerConfig
from weave.config.schema import Limits
from weave.protocol.errors import ErrorCode, RequestError


def admission(mode: str = "system", **limits: Any) -> Admission:
    config = BrokerConfig(
        mode=mode,
        models=(),
        default_model=None,
        limits=Limits(**limits),
        access=Access(uids=(0,)),
        audit_prompts=False,
        deliver_fds=True,
    )
    return Admission(config)


class Connected:
    """Stands for a connection that has left `unread` bytes unread."""

    def __init__(self, admission: Admission, principal: Principal, unread: int = 0) -> None:
        self.share = admission.enter(principal)
        self.share.connections.add(cast(Any, self))
        self.unread = Unread(unread, 0)
        self.share.unread.add(self.unread, 1)
        self.dropped: str | None = None

    def drop(self, reason: str) -> None:
        self.dropped = reason
        self.share.unread.add(self.unread, -1)
        self.unread = Unread()


def test_a_token_bucket_gives_its_burst_then_its_rate() -> None:
    bucket = TokenBucket(rate=2.0, burst=3, now=0.0)
    assert [bucket.take(0.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert bucket.take(0.5) == 0.0


def test_a_token_bucket_keeps_its_reserve() -> None:
    bucket = TokenBucket(rate=2.0, burst=3, now=0.0)
    assert [bucket.take(0.0, leave=2) for _ in range(2)] == [0.0, 0.5]
    assert [bucket.take(0.0) for _ in range(3)] == [0.0, 0.0, 0.5]


def test_only_users_in_a_database_have_their_own_limits() -> None:
    access = Access(uids=(0,), gids=(50,), known=frozenset((0, 1000)))
    assert [principal_of(access, uid) for uid in (0, 1000, 100_000, 165_535)] == [
        Principal(0),
        Principal(1000),
        UNKNOWN,
        UNKNOWN,
    ]


@pytest.mark.parametrize("theirs, waiting, field", [(32, 32, "queue_per_uid"), (1, 192, "queue"), (0, 256, "queue")])
def test_a_full_queue_is_refused_with_its_limit(theirs: int, waiting: int, field: str) -> None:
    admitted = admission()
    admitted.check_queue(Principal(1), waiting=waiting - 1, theirs=max(theirs - 1, 0))
    with pytest.raises(RequestError) as full:
        admitted.check_queue(Principal(1), waiting=waiting, theirs=theirs)
    assert (full.value.code, full.value.field) == (ErrorCode.QUEUE_FULL, field)
    assert full.value.maximum == {"queue": 256, "queue_per_uid": 32}[field]


def test_the_reserve_is_for_known_principals_in_system_mode() -> None:
    with pytest.raises(RequestError, match="queue is 256, of which 64 are kept for others"):
        admission().check_queue(UNKNOWN, waiting=192, theirs=0)
    admission().check_queue(Principal(1), waiting=255, theirs=0)
    admission("user").check_queue(Principal(1), waiting=255, theirs=31)


def test_three_thousand_principals_leave_nothing_behind() -> None:
    admitted = admission(connections=4000)
    connections = [Connected(admitted, Principal(uid)) for uid in range(3000)]
    assert admitted.connections() == 3000
    for connection in connections:
        admitted.leave(cast(Any, connection))
    assert admitted.connections() == 0 and not admitted._shares
    with pytest.raises(RequestError):
        for _ in range(65):
            Connected(admitted, UNKNOWN)
    assert len(admitted._shares) == 1


def test_beyond_the_total_the_largest_holders_are_dropped() -> None:
    size = 2**20
    admitted = admission(outgoing_bytes=8 * size, outgoing_bytes_total=16 * size)
    many = [Connected(admitted, UNKNOWN, size) for _ in range(8)]
    alice = [Connected(admitted, Principal(1), part * size) for part in (1, 5)]
    bob = Connected(admitted, Principal(2), 3 * size)
    admitted.check_unread(bob.share)
    # 17 were too many; the unknown users had the most together.
    assert Counter(one.dropped for one in (*many, *alice, bob)) == {
        None: 10,
        "left too much unread: all clients have more than 16777216 bytes together, and its user the most": 1,
    }
    assert any(one.dropped for one in many)


def test_delivered_bytes_count_per_principal_and_never_expire() -> None:
    admitted = admission(delivered_bytes=100)
    assert [admitted.may_deliver(Principal(1), size) for size in (60, 41, 40, 1)] == [True, False, True, False]
    assert admitted.may_deliver(Principal(2), 100) and admitted.may_deliver(UNKNOWN, 99)
