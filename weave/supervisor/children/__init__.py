"""The supervisor's children: how each is started, attested, watched for forbidden system calls, and reaped."""
