"""kvmctl: run KVM virtual machines through libvirt, from the shell and from CI."""

__version__ = "0.1.0"
