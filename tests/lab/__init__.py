"""Two real libvirt hosts in network namespaces, and the tests that boot guests on them."""
