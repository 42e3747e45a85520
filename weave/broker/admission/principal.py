"""Who asks: a UID says who may see and cancel, a principal whose limits and turns count. They differ since a UID is not
a person: with user namespaces and /etc/subuid one user has thousands of UIDs, all of which keep the groups that
SO_PEERGROUPS shows."""

from msgspec import Struct

from weave.config.child_configs import Access
from weave.protocol.peer import Peer


class Principal(Struct, frozen=True):
    """A known UID, or (`uid` is None) all unknown ones together. Every limit and every turn counts by principal, which
    is compared and hashed as a whole. Only principal_of() makes one."""

    uid: int | None


# Peers that are admitted only by the group the kernel shows for them. They share what one known user gets.
UNKNOWN = Principal(None)


class Requester(Struct, frozen=True):
    """The peer of a connection, and the principal that it counted for when it was accepted."""

    peer: Peer
    principal: Principal

    @property
    def uid(self) -> int:
        """Who may see and cancel what this peer asks for."""
        return self.peer.uid


class Served(Struct, frozen=True):
    """Whose jobs a worker does: those of `only` this UID, or (None) everybody's. Not a principal's: unknown UIDs share
    one, and must not share a worker."""

    only: int | None = None

    def includes(self, uid: int) -> bool:
        """Whether it does jobs of this UID."""
        return self.only in (None, uid)


EVERYBODY = Served()


def principal_of(access: Access, uid: int) -> Principal:
    """For a peer that is allowed."""
    return Principal(uid) if uid in access.known else UNKNOWN
