"""The devices' side: jobs, whose turn it is, and the workers that do them. Knows admission, and no connection: a job
has a Reply to send its events to."""
