#!/bin/sh
# Runs as root inside a copied guest, before its network comes up, and makes it a machine of its own:
# machine-id (which DHCP clients derive their identity from), SSH host keys, leases, random seed.
# cloud-init starts it at every boot, with INSTANCE_ID set; it acts once for each instance.
done=/var/lib/cloud/data/kvmctl-identity
[ "$(cat "$done" 2>/dev/null)" != "$INSTANCE_ID" ] || exit 0

id=$(printf %s "$INSTANCE_ID" | tr -d -c 0-9a-f)
if [ ${#id} = 32 ] && [ -e /etc/machine-id ]; then
    printf '%s\n' "$id" >/etc/machine-id
    if [ -f /var/lib/dbus/machine-id ] && [ ! -L /var/lib/dbus/machine-id ]; then
        printf '%s\n' "$id" >/var/lib/dbus/machine-id
    fi
    # The journal of before belongs to the other machine; this one's begins in a folder of its own.
    systemctl --no-block try-restart systemd-journald.service 2>/dev/null
fi
rm -f /etc/ssh/ssh_host_*
rm -f /var/lib/dhcp/*.lease* /var/lib/dhclient/*.lease* /var/lib/dhcpcd/*.lease* /var/lib/NetworkManager/*.lease
rm -f /var/lib/dhcpcd/duid /etc/dhcpcd.duid /var/lib/NetworkManager/secret_key /var/lib/systemd/random-seed
mkdir -p "${done%/*}" && printf '%s' "$INSTANCE_ID" >"$done"
exit 0
