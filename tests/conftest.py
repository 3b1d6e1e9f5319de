"""What holds for all tests."""

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Run in the background by a shell, the tests would ignore Ctrl-C, and so would every kvmctl that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
