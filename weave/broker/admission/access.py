"""Who may connect."""

import socket

from weave.config.child_configs import Access
from weave.protocol.peer import Peer, supplementary_groups


def is_allowed(access: Access, peer: Peer, sock: socket.socket) -> bool:
    """Checks the UID, the primary group, and the supplementary groups at the time of connect(2)."""
    if peer.uid == access.unmapped:
        return False
    if peer.uid in access.uids or peer.gid in access.gids:
        return True
    if not access.gids:
        return False
    groups = supplementary_groups(sock)
    if groups is None:
        return peer.uid in access.members
    return not set(groups).isdisjoint(access.gids)
