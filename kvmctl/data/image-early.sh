#!/bin/sh
# Runs after Debian's essential packages are unpacked and before the others are: what is written here,
# the kernel's and initramfs-tools' own scripts already find, so that the initramfs is made once.
set -eu
root=$1

mkdir -p "$root/etc/initramfs-tools/conf.d" "$root/usr/share/initramfs-tools/modules.d"
# The drivers of every disk that QEMU offers, instead of all that Linux has: a quarter of the size, and
# on an emulated CPU some seconds of each boot. Modules that a kernel does not have are passed over.
cat >"$root/etc/initramfs-tools/conf.d/image" <<END
MODULES=list
COMPRESS=zstd
RESUME=none
END
printf '%s\n' virtio_pci virtio_mmio virtio_blk virtio_scsi nvme ahci ata_piix sym53c8xx megaraid_sas \
    mptsas xhci_pci uas usb_storage sd_mod ext4 >"$root/usr/share/initramfs-tools/modules.d/image"

mkdir -p "$root/boot/efi" "$root/etc/default/grub.d"
cat >"$root/etc/fstab" <<END
UUID=$KVMCTL_ROOT_UUID / ext4 errors=remount-ro 0 1
UUID=$KVMCTL_ESP_UUID /boot/efi vfat umask=0077,noauto,nofail,x-systemd.automount,x-systemd.idle-timeout=1min 0 2
END
cat >"$root/etc/default/grub.d/image.cfg" <<END
GRUB_TIMEOUT=0
GRUB_RECORDFAIL_TIMEOUT=0
GRUB_DISABLE_OS_PROBER=true
GRUB_TERMINAL="console serial"
GRUB_SERIAL_COMMAND="serial --speed=115200"
GRUB_CMDLINE_LINUX_DEFAULT=""
GRUB_CMDLINE_LINUX="$KVMCTL_CMDLINE"
END
