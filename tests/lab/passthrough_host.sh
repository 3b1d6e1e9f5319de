#!/bin/sh
# Process 1 of the emulated host once it has its file system: libvirt, the guest agent, and nothing else.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8
export PATH LC_ALL
# A slice of the sample device mtty.
MDEV=4b20d080-1b54-4048-85b3-a6a62d165c01
exec </dev/null >/dev/console 2>&1
mkdir -p /dev/pts /dev/shm
mount -t devpts -o ptmxmode=666 devpts /dev/pts
# What is the machine's own of libvirt is none of this host's.
for place in /dev/shm /run /etc/libvirt /var/log/libvirt /var/cache/libvirt; do
    mkdir -p "$place"
    mount -t tmpfs tmpfs "$place"
done
# Without systemd libvirt makes its control groups itself.
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /dev/hugepages
mount -t hugetlbfs hugetlbfs /dev/hugepages
# Made before libvirt looks: no udev tells it of what comes later.
if [ -d /sys/class/mdev_bus/mtty ]; then
    echo "$MDEV" >/sys/class/mdev_bus/mtty/mdev_supported_types/mtty-1/create
fi
# There libvirt 11 looks for a driver that suits a device better than vfio-pci, and there has to be something to read.
mkdir -p "/lib/modules/$(uname -r)"
: >>"/lib/modules/$(uname -r)/modules.alias"
mkdir -p /var/lib/libvirt /run/lock /lab/home
mount -t ext4 /dev/vda /var/lib/libvirt
hostname outer
ip link set lo up

# libvirt asks each emulator there is what it can do; emulated, that takes a minute for those nobody needs.
for emulator in /usr/bin/qemu-system-*; do
    [ "$emulator" = /usr/bin/qemu-system-x86_64 ] || rm -f "$emulator"
done
cat >/etc/libvirt/libvirtd.conf <<'CONF'
host_uuid = "0f5a3b4e-6a41-4c6e-9d7e-2f0c7f1b2a33"
auth_unix_rw = "none"
CONF
cat >/etc/libvirt/qemu.conf <<'CONF'
user = "root"
group = "root"
stdio_handler = "file"
security_driver = "none"
CONF
# What udev would note of USB devices, which libvirt asks of it.
mkdir -p /run/udev/data
until cat /sys/bus/usb/devices/*-[0-9]*/idVendor; do sleep 0.2; done
for device in /sys/bus/usb/devices/*/idVendor; do
    device=${device%/idVendor}
    read -r vendor <"$device/idVendor"
    read -r product <"$device/idProduct"
    read -r number <"$device/dev"
    printf 'E:ID_VENDOR_ID=%s\nE:ID_MODEL_ID=%s\n' "$vendor" "$product" >"/run/udev/data/c$number"
done
libvirtd --daemon --pid-file /run/libvirtd.pid
/lab/qemu-ga --method virtio-serial --path /dev/vport*p1 &
# Guests are orphans, which process 1 has to bury.
while :; do sleep 1; done
