"""The layers that confine a process, each of which holds alone, and attestation, the supervisor's check of them."""
