# shellcheck shell=sh
# Runs as root, through the guest agent, inside a copy that was forked from a running guest, while its network is
# still cut: sh -c THIS kvmctl HOSTNAME MACHINE_ID INSTANCE_ID [OLD_MAC NEW_MAC]...
# Whatever a guest does not have is passed over; each line that is printed says what was done. What has read any of it
# already is restarted by fork-keys.sh.
name=$1 id=$2 instance=$3
shift 3
old_name=$(hostname 2>/dev/null || cat /proc/sys/kernel/hostname)

if [ -f /etc/machine-id ] && [ -s /etc/machine-id ]; then
    printf '%s\n' "$id" >/etc/machine-id && echo machine-id
    if [ -f /var/lib/dbus/machine-id ] && [ ! -L /var/lib/dbus/machine-id ]; then
        printf '%s\n' "$id" >/var/lib/dbus/machine-id
    fi
fi

if hostname "$name" 2>/dev/null || echo "$name" >/proc/sys/kernel/hostname; then
    [ ! -f /etc/hostname ] || echo "$name" >/etc/hostname
    if [ -n "$old_name" ] && [ -f /etc/hosts ]; then
        sed "s/\([[:space:]]\)$old_name\([[:space:].]\|\$\)/\1$name\2/g" /etc/hosts >/etc/.hosts.kvmctl &&
            cat /etc/.hosts.kvmctl >/etc/hosts
        rm -f /etc/.hosts.kvmctl
    fi
    echo hostname
fi

# Network configuration that names the old card now means the new one, wherever it is written down.
while [ $# -ge 2 ]; do
    for file in /etc/netplan/*.yaml /etc/systemd/network/* /run/systemd/network/* /etc/network/interfaces \
        /etc/network/interfaces.d/* /etc/NetworkManager/system-connections/* /etc/sysconfig/network-scripts/ifcfg-* \
        /etc/udev/rules.d/70-persistent-net.rules; do
        [ -f "$file" ] || continue
        if grep -qi "$1" "$file"; then
            sed "s/$1/$2/Ig" "$file" >"$file.kvmctl" && cat "$file.kvmctl" >"$file"
            rm -f "$file.kvmctl"
        fi
    done
    shift 2
done
rm -f /var/lib/dhcp/*.lease* /var/lib/dhclient/*.lease* /var/lib/dhcpcd/*.lease* /run/systemd/netif/leases/* \
    /var/lib/NetworkManager/*.lease
rm -f /var/lib/dhcpcd/duid /etc/dhcpcd.duid /var/lib/NetworkManager/secret_key /var/lib/systemd/random-seed
if [ -d /var/lib/cloud/data ]; then
    # The boothook of a copy's seed need not do it all again at the next boot.
    printf '%s' "$instance" >/var/lib/cloud/data/kvmctl-identity
fi
echo 'done'
