"""Who makes a request. The UID decides who may see and cancel it; the principal decides which limits and turns it
counts towards. They differ because a UID is not a person: with user namespaces and /etc/subuid one user has thousands
of UIDs, all with the groups that SO_PEERGROUPS shows."""

from msgspec import Struct

from weave.config.child_configs import Access
from weave.protocol.peer import Peer


class Principal(Struct, frozen=True):
    """A known UID, or (`uid` is None) all unknown ones together. Limits and turns count by principal. Only
    principal_of() makes one."""

    uid: int | None


# Peers that are admitted only by a group that the kernel reports. Together they get what one known user gets.
UNKNOWN = Principal(None)


class Requester(Struct, frozen=True):
    """The peer of a connection, and its principal when it was accepted."""

    peer: Peer
    principal: Principal

    @property
    def uid(self) -> int:
        """The user who may see and cancel this peer's jobs."""
        return self.peer.uid


class Served(Struct, frozen=True):
    """Whose jobs a worker runs: those of the UID `only`, or (None) everyone's. Not those of a principal: unknown UIDs
    share a principal, and must not share a worker."""

    only: int | None = None

    def includes(self, uid: int) -> bool:
        """Whether the worker may run jobs of this UID."""
        return self.only in (None, uid)


EVERYONE = Served()


def principal_of(access: Access, uid: int) -> Principal:
    """The principal of a peer that is allowed."""
    return Principal(uid) if uid in access.known else UNKNOWN
