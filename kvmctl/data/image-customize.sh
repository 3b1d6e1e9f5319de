#!/bin/sh
# Runs when all packages are installed: turns the tree into a guest that boots by itself and waits for
# cloud-init's seed, then makes a filesystem of it without mounting one.
set -eu
root=$1
out=$KVMCTL_OUT

in_root() {
    chroot "$root" env LC_ALL=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"
}

# --- network: systemd-networkd takes every Ethernet port that cloud-init was told nothing about
mkdir -p "$root/etc/systemd/network" "$root/etc/systemd/system/systemd-networkd-wait-online.service.d"
cat >"$root/etc/systemd/network/80-ethernet.network" <<END
[Match]
Type=ether
Kind=!*

[Link]
RequiredForOnline=no

[Network]
DHCP=yes
END
cat >"$root/etc/systemd/system/systemd-networkd-wait-online.service.d/image.conf" <<END
# One port with an address is enough, and a guest without any port need not wait at all.
[Unit]
ConditionPathExistsGlob=/sys/class/net/e*

[Service]
ExecStart=
ExecStart=/lib/systemd/systemd-networkd-wait-online --any --timeout=60
END
if [ -e "$root/lib/systemd/system/systemd-resolved.service" ]; then
    mkdir -p "$root/etc/systemd/resolved.conf.d"
    printf '[Resolve]\nLLMNR=no\nMulticastDNS=no\n' >"$root/etc/systemd/resolved.conf.d/image.conf"
    rm -f "$root/etc/resolv.conf"
    ln -s ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
    systemctl --root="$root" -q enable systemd-resolved.service
fi
systemctl --root="$root" -q enable systemd-networkd.service

# --- cloud-init: a seed on a disk, no search for clouds, and none of the modules that only those need
cp "$KVMCTL_BUILD/image-cloud.cfg" "$root/etc/cloud/cloud.cfg.d/80-image.cfg"
chmod 644 "$root/etc/cloud/cloud.cfg.d/80-image.cfg"
if [ ! -e "$root/usr/lib/python3/dist-packages/cloudinit/net/networkd.py" ]; then
    sed -i 's/renderers: \[networkd\]/renderers: [netplan]/' "$root/etc/cloud/cloud.cfg.d/80-image.cfg"
fi
if [ ! -e "$root/usr/lib/python3/dist-packages/cloudinit/config/cc_write_files_deferred.py" ]; then
    sed -i '/write-files-deferred/d' "$root/etc/cloud/cloud.cfg.d/80-image.cfg"
fi

# --- nothing that works in the background of its own accord, consoles on screen and serial line
for unit in apt-daily.timer apt-daily-upgrade.timer man-db.timer e2scrub_all.timer e2scrub_reap.service \
    dpkg-db-backup.timer systemd-timesyncd.service; do
    if [ -e "$root/lib/systemd/system/$unit" ]; then
        systemctl --root="$root" -q disable "$unit"
    fi
done
for tty in ttyS0 hvc0; do
    systemctl --root="$root" -q enable "serial-getty@$tty.service"
done

# --- who may get in is the seed's business
in_root passwd -q -l root 2>/dev/null || in_root usermod -L root
rm -f "$root"/etc/ssh/ssh_host_*
: >"$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id"
echo localhost >"$root/etc/hostname"
printf '127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n' \
    >"$root/etc/hosts"

# --- boot loaders: BIOS reads core.img behind the partition table, UEFI shim and GRUB from the ESP
kernel=$(cd "$root/boot" && ls -1 vmlinuz-* | sort -V | tail -n 1)
initrd=initrd.img-${kernel#vmlinuz-}
[ -s "$root/boot/$initrd" ] || { echo "E: no initramfs for $kernel was made" >&2; exit 1; }
mkdir -p "$root/boot/grub/i386-pc" "$root/boot/grub/x86_64-efi"
cp "$root"/usr/lib/grub/i386-pc/*.mod "$root"/usr/lib/grub/i386-pc/*.lst "$root/boot/grub/i386-pc/"
# update-grub replaces this file in the guest with each new kernel; it cannot run here, where / is no disk.
cat >"$root/boot/grub/grub.cfg" <<END
set timeout=0
if serial --speed=115200; then
    terminal_input console serial
    terminal_output console serial
fi
search --no-floppy --fs-uuid --set=root $KVMCTL_ROOT_UUID
linux /boot/$kernel root=UUID=$KVMCTL_ROOT_UUID ro $KVMCTL_CMDLINE
initrd /boot/$initrd
boot
END
cat >"$root/boot/early.cfg" <<END
search.fs_uuid $KVMCTL_ROOT_UUID root
set prefix=(\$root)/boot/grub
END
in_root grub-mkimage -O i386-pc -o /boot/core.img -c /boot/early.cfg -p /boot/grub \
    biosdisk part_gpt ext2 search_fs_uuid configfile normal linux test serial search echo
cp "$root/usr/lib/grub/i386-pc/boot.img" "$out/boot.img"
mv "$root/boot/core.img" "$out/core.img"
mv "$root/boot/early.cfg" "$out/early.cfg"
cp "$root/usr/lib/shim/shimx64.efi.signed" "$out/BOOTX64.EFI"
cp "$root/usr/lib/shim/mmx64.efi.signed" "$out/mmx64.efi"
cp "$root/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed" "$out/grubx64.efi"

# --- what the build itself left; the first three are mmdebstrap's, which takes them away only after this
rm -f "$root/usr/sbin/policy-rc.d" "$root/etc/apt/apt.conf.d/99mmdebstrap"
if [ -e "$root/sbin/start-stop-daemon.REAL" ]; then
    mv "$root/sbin/start-stop-daemon.REAL" "$root/sbin/start-stop-daemon"
fi
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb \
    "$root"/var/cache/debconf/*-old "$root"/var/lib/dpkg/*-old "$root"/var/log/*.log "$root"/var/log/apt/* \
    "$root"/var/cache/ldconfig/aux-cache "$root"/etc/*- "$root"/run/* 2>/dev/null || true
mkdir -p "$root/var/lib/apt/lists/partial"

# --- the root filesystem. /proc, /sys and /dev are mounted in the tree: a bind mount shows it without them.
cat >"$out/mkfs.sh" <<'END'
set -eu
mkdir "$2/tree"
mount --bind "$1" "$2/tree"
mke2fs -q -F -t ext4 -L root -U "$KVMCTL_ROOT_UUID" -m 1 -b 4096 -E lazy_itable_init=1,lazy_journal_init=1,nodiscard \
    -d "$2/tree" "$2/root.img" "$KVMCTL_ROOT_KIB"
END
echo "I: making the root filesystem..." >&2
unshare --mount --propagation private sh "$out/mkfs.sh" "$root" "$out"
chmod a+rw "$out"/*.img "$out"/*.efi "$out"/*.EFI
