"""libvirt's documents: parsed, checked, normalised, written. A module per kind of object."""
