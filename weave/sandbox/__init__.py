"""The layers that lock a process in, each of which holds alone, and the supervisor's own look at them."""
