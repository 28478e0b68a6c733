"""Unmodified clients of libvirt, and the documents and call sequences of clouds."""
