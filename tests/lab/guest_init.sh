#!/bin/busybox sh
# shellcheck shell=dash disable=SC2013,SC2174
# Process 1 of the lab's tiny guest. What it does is driven by the kernel's command line:
#   lab.hostname=NAME    its name (tiny)
#   lab.address=A/N      this address on the first NIC, instead of DHCP
#   lab.nodhcp           no DHCP
#   lab.noagent          no guest agent
#   lab.noseed           does not look for a cloud-init seed
#   lab.key=BASE64       an ed25519 key (the second word of its .pub) that root may log in with
# It tells on the console, and in /run/lab.log, one "lab: ..." line for each thing done; at last "lab: ready".
/bin/busybox mkdir -p /proc /sys /dev /run /tmp /root /etc /var /mnt /www/cgi-bin /usr/bin /usr/sbin
/bin/busybox --install -s /bin
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root TERM=vt100
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm /dev/virtio-ports
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
ln -sf /run /var/run
ln -sf /proc/self/fd /dev/fd
dmesg -n 1

say() { echo "lab: $*" >>/run/lab.log; echo "lab: $*" >/dev/console; }
option() { # prints the value of a parameter, and is false where it is not given
    for word in $(cat /proc/cmdline); do
        case $word in "lab.$1" | "lab.$1="*) echo "${word#"lab.$1"}" | sed 's/^=//'; return 0 ;; esac
    done
    return 1
}

say started
while read -r module; do
    insmod "/modules/$module.ko" 2>/dev/null || say "module $module did not load"
done </modules/order

hostname "$(option hostname || echo tiny)"
echo 'root:x:0:0:root:/root:/bin/sh' >/etc/passwd
echo 'root:*:19000:0:99999:7:::' >/etc/shadow
echo 'root:x:0:' >/etc/group
echo '/bin/sh' >/etc/shells
echo 'passwd: files' >/etc/nsswitch.conf
echo '127.0.0.1 localhost' >/etc/hosts
mkdir -m 700 -p /root/.ssh
if key=$(option key); then echo "ssh-ed25519 $key" >>/root/.ssh/authorized_keys; fi
ip link set lo up

look_for_seed() {
    mkdir -p /mnt/seed
    for device in /dev/vd? /dev/sd? /dev/sr?; do
        [ -b "$device" ] || continue
        mount -o ro -t iso9660 "$device" /mnt/seed 2>/dev/null || mount -o ro -t vfat "$device" /mnt/seed 2>/dev/null || continue
        if [ -f /mnt/seed/user-data ]; then
            mkdir -p /run/seed
            cp /mnt/seed/* /run/seed/ 2>/dev/null
            grep -ho 'ssh-[a-z0-9]* [A-Za-z0-9+/=]*' /run/seed/user-data >>/root/.ssh/authorized_keys
            name=$(sed -n 's/^local-hostname: *//p' /run/seed/meta-data | tr -d "\"'")
            [ -z "$name" ] || hostname "$name"
            sed -n 's/^ *-\{0,1\} *name: *//p' /run/seed/user-data | tr -d "\"'" | grep -x '[a-z][a-z0-9_-]*' | while read -r user; do
                mkdir -p "/home/$user"
                echo "$user:x:0:0::/home/$user:/bin/sh" >>/etc/passwd
                echo "$user:*:19000:0:99999:7:::" >>/etc/shadow
                mkdir -m 700 -p "/home/$user/.ssh"
                cp /root/.ssh/authorized_keys "/home/$user/.ssh/"
            done
            say "seed on $device for $(hostname)"
        fi
        umount /mnt/seed
    done
}
option noseed >/dev/null || look_for_seed

if [ -x /usr/sbin/dropbear ]; then
    mkdir -p /etc/dropbear
    dropbear -R -s -p 22 2>/dev/null && say "ssh on port 22"
fi
# What a test can talk to: TCP echo on 7, and the uptime by HTTP on 80.
(while :; do nc -l -p 7 -e /bin/cat; done) >/dev/null 2>&1 &
printf '#!/bin/sh\nprintf "Content-Type: text/plain\\r\\n\\r\\n"\ncat /proc/uptime\n' >/www/cgi-bin/uptime
chmod 755 /www/cgi-bin/uptime
hostname >/www/hostname
httpd -p 80 -h /www 2>/dev/null

# Looks after what comes and goes: NICs (DHCP on each), the agent's port, CPUs, the power button.
watch_devices() {
    dhcp=1
    option nodhcp >/dev/null && dhcp=0
    address=$(option address || true)
    while :; do
        for path in /sys/class/net/eth*; do
            nic=${path##*/}
            [ -e "$path" ] || continue
            [ ! -e "/run/nic.$nic.$(cat "$path/ifindex")" ] || continue
            : >"/run/nic.$nic.$(cat "$path/ifindex")"
            driver=$(readlink "$path/device/driver")
            ip link set "$nic" up
            say "nic $nic $(cat "$path/address") ${driver##*/}"
            if [ -n "$address" ]; then
                ip address add "$address" dev "$nic"
                say "address $nic ${address%/*}"
                address=
            elif [ $dhcp = 1 ]; then
                udhcpc -f -S -i "$nic" -t 100000 -T 1 -x "hostname:$(hostname)" -s /bin/dhcp-event >/dev/null 2>&1 &
            fi
        done
        for path in /sys/class/virtio-ports/*; do
            name=$(cat "$path/name" 2>/dev/null) || continue
            [ -z "$name" ] || [ -e "/dev/virtio-ports/$name" ] || ln -sf "/dev/${path##*/}" "/dev/virtio-ports/$name"
        done
        agent=/dev/virtio-ports/org.qemu.guest_agent.0
        if [ -e $agent ] && [ ! -e /run/agent ] && [ -x /usr/sbin/qemu-ga ] && ! option noagent >/dev/null; then
            : >/run/agent
            (while :; do qemu-ga -m virtio-serial -p $agent -t /run; sleep 1; done) >/run/agent.log 2>&1 &
            say "agent started"
        fi
        for cpu in /sys/devices/system/cpu/cpu*/online; do
            read -r state 2>/dev/null <"$cpu" || continue
            [ "$state" = 1 ] || echo 1 >"$cpu" 2>/dev/null
        done
        for path in /sys/class/input/event*; do
            read -r name 2>/dev/null <"$path/device/name" || continue
            if [ "$name" = "Power Button" ] && [ ! -e "/run/button.${path##*/}" ]; then
                : >"/run/button.${path##*/}"
                (dd if="/dev/input/${path##*/}" of=/dev/null bs=24 count=1 2>/dev/null; say "power button"; shutdown -P) &
            fi
        done
        sleep 1
    done
}
watch_devices </dev/null &
say "disks $(cd /sys/block && echo [a-km-qs-z]* | sed 's/\[[^ ]*//')"
say ready

console=/dev/console
[ ! -c /dev/ttyS0 ] || console=/dev/ttyS0
cat >/etc/profile <<'P'
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
PS1= PS2=
P
while :; do
    setsid sh -c "exec sh -l <$console >$console 2>&1" || true
    sleep 1
done
