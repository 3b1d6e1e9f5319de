"""What kvmctl does: one file a capability. plan() looks and decides, run() acts and undoes."""
