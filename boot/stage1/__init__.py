"""Stage-1: the little Linux a host boots from its agent; it starts the kernel of the host's own disk."""
