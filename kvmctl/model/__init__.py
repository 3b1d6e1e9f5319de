"""What libvirt reads: dataclasses to and from XML, and the small types in them. No I/O, no policy."""
