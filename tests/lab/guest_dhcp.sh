#!/bin/sh
# shellcheck disable=SC2154  # udhcpc sets the variables
# udhcpc calls this with what it was given.
case $1 in
    bound | renew)
        ip address flush dev "$interface"
        ip address add "$ip/${mask:-24}" dev "$interface"
        [ -z "$router" ] || ip route replace default via "${router%% *}" dev "$interface"
        : >/etc/resolv.conf
        for server in $dns; do echo "nameserver $server" >>/etc/resolv.conf; done
        if [ "$1" = bound ]; then
            echo "lab: address $interface $ip" >>/run/lab.log
            echo "lab: address $interface $ip" >/dev/console
        fi
        ;;
    deconfig) ip address flush dev "$interface" ;;
esac
