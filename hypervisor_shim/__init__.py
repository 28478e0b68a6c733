"""A libvirt RPC server library: knows libvirt, knows nothing of hardware."""
