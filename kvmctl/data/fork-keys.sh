# shellcheck shell=sh
# Runs as root, through the guest agent, after fork-identity.sh, still without a network: sh -c THIS
# It takes its time on an emulated CPU; the new card is in the guest by now, its cable out.
# The old keys are gone before the first new one is made. An RSA key takes an emulated CPU many seconds, so that those
# that take none are made at once, and it follows while the guest has its network already.
restart_ssh() {
    if [ -d /run/systemd/system ]; then
        systemctl "$1" ssh.service sshd.service 2>/dev/null
    elif [ -s /run/sshd.pid ]; then
        kill -HUP "$(cat /run/sshd.pid)"
    fi
    return 0
}

# They know the machine-id that DHCP is asked with.
systemctl try-restart systemd-networkd.service systemd-journald.service 2>/dev/null

if ls /etc/ssh/ssh_host_*_key >/dev/null 2>&1; then
    command -v ssh-keygen >/dev/null || { echo 'there is no ssh-keygen in it' >&2; exit 1; }
    quick='' slow=''
    # As many kinds as there were, and their certificates with them.
    for key in /etc/ssh/ssh_host_*_key; do
        kind=${key#/etc/ssh/ssh_host_}
        kind=${kind%_key}
        case $kind in
            ed25519 | ecdsa) quick="$quick $kind" ;;
            *) slow="$slow $kind" ;;
        esac
        rm -f "$key" "$key.pub" "$key-cert.pub"
    done
    # There must be one to be known by.
    [ -n "$quick" ] || { quick=$slow slow=''; }
    for kind in $quick; do
        ssh-keygen -q -N '' -t "$kind" -f "/etc/ssh/ssh_host_${kind}_key" </dev/null
    done
    restart_ssh try-restart
    if [ -n "$slow" ]; then
        (
            for kind in $slow; do
                key=/etc/ssh/ssh_host_${kind}_key
                nice -n 19 ssh-keygen -q -N '' -t "$kind" -f "$key.new" && mv "$key.new.pub" "$key.pub" && mv "$key.new" "$key"
            done
            restart_ssh try-reload-or-restart
        ) </dev/null >/dev/null 2>&1 &
    fi
    echo host-keys
elif ls /etc/dropbear/dropbear_*_host_key >/dev/null 2>&1; then
    rm -f /etc/dropbear/dropbear_*_host_key
    echo host-keys
fi
echo 'done'
