"""What must hold before something is done: read-only checks, each a Check."""
