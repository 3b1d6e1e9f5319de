# shellcheck shell=sh
# Runs as root, through the guest agent, after fork-identity.sh, still without a network: sh -c THIS
if ls /etc/ssh/ssh_host_*_key >/dev/null 2>&1; then
    # As many kinds as there were: an RSA key takes long where there is none to replace.
    for key in /etc/ssh/ssh_host_*_key; do
        kind=${key#/etc/ssh/ssh_host_}
        kind=${kind%_key}
        rm -f "$key" "$key.pub"
        ssh-keygen -q -N '' -t "$kind" -f "$key" </dev/null
    done
    systemctl try-restart ssh.service sshd.service 2>/dev/null
    echo host-keys
elif ls /etc/dropbear/dropbear_*_host_key >/dev/null 2>&1; then
    rm -f /etc/dropbear/dropbear_*_host_key
    echo host-keys
fi
echo 'done'
