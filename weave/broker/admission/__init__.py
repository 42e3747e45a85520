"""Who may connect, which principal a connection counts towards, each principal's limits, and the audit log of
refusals."""
