#!/bin/busybox sh
# shellcheck shell=dash
# Process 1 of the emulated host, from its initramfs: finds the machine's own file system and goes there.
bb=/bin/busybox
$bb mkdir -p /proc /machine /changes /host
$bb mount -t proc proc /proc
$bb mount -t devtmpfs dev /dev
for module in $($bb cat /modules/order); do $bb insmod /modules/$module.ko; done

# All of the test machine's Debian, which nobody can write to; changes stay in memory.
$bb mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro machine /machine
$bb mount -t tmpfs -o size=512M changes /changes
$bb mkdir /changes/upper /changes/work
$bb mount -t overlay -o lowerdir=/machine,upperdir=/changes/upper,workdir=/changes/work root /host

$bb mkdir -p /host/lab
$bb cp /lab/* /host/lab/
for place in proc sys dev run tmp; do $bb mkdir -p /host/$place; done
$bb mount -t proc proc /host/proc
$bb mount -t sysfs sys /host/sys
$bb mount -t devtmpfs dev /host/dev
$bb umount /dev /proc
exec $bb switch_root /host /bin/sh /lab/passthrough_host.sh
