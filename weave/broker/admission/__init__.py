"""Who may connect, whom a connection counts for, how much each may use, and the audit of what was refused."""
