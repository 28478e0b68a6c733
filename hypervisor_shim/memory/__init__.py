"""A driver that keeps everything in memory, in the likeness of libvirt's `test:///default`."""

from hypervisor_shim.memory.domains import DEFAULT_DOMAIN, MemoryDriver

__all__ = ["DEFAULT_DOMAIN", "MemoryDriver"]
