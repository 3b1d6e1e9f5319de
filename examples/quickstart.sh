#!/usr/bin/env bash
# From a fresh Debian or Ubuntu to a real guest: installs what is missing, makes a Debian image, boots a
# guest from it, logs in, and shows what else there is. A second run takes seconds and changes nothing.
#
#   examples/quickstart.sh            do it
#   examples/quickstart.sh --remove   take it all away again
#
# As root the guest runs under the system's libvirtd, as a plain user under one's own (qemu:///session).
# Nothing has to be set up by hand, and nothing is reachable from outside this machine.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
state=${XDG_DATA_HOME:-$HOME/.local/share}/kvmctl
vm=quickstart
image=debian-12
key=$state/quickstart_ed25519

# Only where the system's control groups cannot be written to, see start_hypervisor.
qemu_conf=/etc/libvirt/qemu.conf
no_cgroups='cgroup_controllers = [ ]  # by kvmctl quickstart'

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
run() { printf '$ %s\n' "$*"; "$@"; }
die() { printf 'quickstart: %s\n' "$*" >&2; exit 1; }

arch=$(uname -m)
debian_packages() {
  case $arch in
    x86_64 | i?86) printf '%s\n' qemu-system-x86 ovmf ;;
    aarch64) printf '%s\n' qemu-system-arm qemu-efi-aarch64 ;;
    *) printf '%s\n' qemu-system ;;
  esac
  printf '%s\n' libvirt-daemon-system libvirt-clients nftables qemu-utils mmdebstrap debian-archive-keyring e2fsprogs dosfstools \
    mtools fdisk uidmap openssh-client python3-venv python3-pip python3-libvirt python3-lxml python3-click \
    python3-rich python3-yaml
}
# The same on Fedora and its relatives. These names were looked up, not tried.
fedora_packages() {
  printf '%s\n' qemu-kvm edk2-ovmf libvirt-daemon-kvm libvirt-client nftables qemu-img mmdebstrap debian-keyring \
    e2fsprogs dosfstools mtools util-linux shadow-utils openssh-clients python3 python3-pip python3-libvirt python3-lxml python3-click \
    python3-rich python3-pyyaml
}

as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null 2>&1; then
    sudo "$@"
  else
    die "packages are missing and only root can install them; run as root: $*"
  fi
}

# A fresh machine looks for updates of its own accord, and apt, which can wait for its turn to install, cannot wait for
# its lists.
update_lists() {
  local said
  until { said=$(as_root env LC_ALL=C.UTF-8 apt-get update -q 2>&1 >&3); } 3>&1; do
    printf '%s\n' "$said" >&2
    [[ $said = *"Could not get lock"* ]] || die "apt-get update failed"
    say "Waiting for the other apt to end"
    sleep 5
  done
}

install_packages() {
  local missing=() package
  if command -v apt-get >/dev/null 2>&1; then
    while read -r package; do
      [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
    done < <(debian_packages)
    [ ${#missing[@]} -gt 0 ] || return 0
    say "Installing ${missing[*]}"
    update_lists
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q -o DPkg::Lock::Timeout=600 --no-install-recommends \
      "${missing[@]}"
  elif command -v dnf >/dev/null 2>&1; then
    while read -r package; do
      rpm -q --quiet "$package" || missing+=("$package")
    done < <(fedora_packages)
    [ ${#missing[@]} -gt 0 ] || return 0
    say "Installing ${missing[*]}"
    as_root dnf install -y "${missing[@]}"
  else
    die "neither apt-get nor dnf is here; install libvirt, QEMU, mmdebstrap and Python 3.11 by hand"
  fi
}

# The distribution's Python, whose libvirt module belongs to its libvirt, before any other in PATH.
find_python() {
  local candidate
  for candidate in /usr/bin/python3 python3; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  return 1
}

# Before anything is installed on a system that is too old for it; where there is no Python yet, after that.
check_python() {
  if ! find_python >/dev/null; then
    die "kvmctl needs Python 3.11, and this system has $(python3 -V 2>&1): use Debian 12, Ubuntu 24.04 or newer"
  fi
}

install_kvmctl() {
  local stamp wanted
  # shellcheck disable=SC2046  # the repository's own names have no spaces
  wanted=$(cd "$repo" && cat pyproject.toml $(find kvmctl -type f ! -name '*.pyc' | LC_ALL=C sort) | sha256sum)
  stamp=$state/installed
  if [ ! -x "$state/venv/bin/kvmctl" ] || [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    say "Installing kvmctl into $state/venv"
    mkdir -p "$state"
    [ -x "$state/venv/bin/python" ] || "$(find_python)" -m venv --system-site-packages "$state/venv"
    # From a copy: pip builds in the tree it is given, which may not be this user's to write to.
    local copy
    copy=$(mktemp -d)
    cp -r "$repo/pyproject.toml" "$repo/README.md" "$repo/LICENSE" "$repo/kvmctl" "$repo/docs" "$copy"
    "$state/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$copy"
    rm -rf "$copy"
    printf '%s\n' "$wanted" >"$stamp"
  fi
  PATH=$state/venv/bin:$PATH
}

start_hypervisor() {
  if [ "$(id -u)" != 0 ]; then
    # libvirt starts one's own daemon by itself.
    export LIBVIRT_DEFAULT_URI=qemu:///session
    return
  fi
  export LIBVIRT_DEFAULT_URI=qemu:///system
  if kvmctl list >/dev/null 2>&1; then return; fi
  say "Starting libvirtd"
  if [ -d /run/systemd/system ]; then
    systemctl start libvirtd.service 2>/dev/null || systemctl start virtqemud.service virtstoraged.service
  else
    # Without systemd nobody starts them. virtlogd keeps the guests' logs.
    # Without udev /dev/kvm belongs to root alone, and libvirt, which can open it where its guests cannot, starts
    # every emulator anew each time it is asked anything. This is what udev's own rule would do.
    if [ -c /dev/kvm ] && getent group kvm >/dev/null && [ "$(stat -c %a /dev/kvm)" = 600 ]; then
      chgrp kvm /dev/kvm && chmod 660 /dev/kvm
    fi
    # A container often has the machine's control groups for reading only, and libvirt then starts no guest:
    # it is told to use none. --remove takes the line away again.
    if grep -qE '^cgroup2? /sys/fs/cgroup[^ ]* cgroup2? ro,' /proc/self/mounts && ! grep -q '^cgroup_controllers' "$qemu_conf"; then
      echo "$no_cgroups" >>"$qemu_conf"
    fi
    mkdir -p /run/libvirt
    [ -S /run/libvirt/virtlogd-sock ] || virtlogd --daemon
    libvirtd --daemon --pid-file /run/libvirt/libvirtd.pid
  fi
  local _
  for _ in $(seq 50); do
    kvmctl list >/dev/null 2>&1 && return
    sleep 0.2
  done
  kvmctl list >/dev/null || die "libvirtd does not answer; 'kvmctl host check' says more"
}

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# Takes the name under which ssh knows the guest out of known_hosts, and out of the copy that ssh and ssh-keygen make of it.
forget_key() {
  local known=$HOME/.ssh/known_hosts file
  for file in "$known" "$known.old"; do
    [ -f "$file" ] || continue
    cp -p "$file" "$file.kvmctl"
    ssh-keygen -R "$1" -f "$file.kvmctl" >/dev/null 2>&1 || true
    mv "$file.kvmctl" "$file"
    rm -f "$file.kvmctl.old"
    [ -s "$file" ] || rm -f "$file"
  done
}

remove_all() {
  PATH=$state/venv/bin:$PATH
  if command -v kvmctl >/dev/null 2>&1; then
    start_hypervisor
    if kvmctl info "$vm" -o name >/dev/null 2>&1; then
      forget_key "kvmctl-$(virsh domuuid "$vm")"
      run kvmctl delete "$vm" --yes
    fi
    if kvmctl image info "$image" -o name >/dev/null 2>&1; then run kvmctl image delete "$image" --yes; fi
    # The pool of images is kvmctl's own; the pool default may be others' as well, and stays.
    if [ -z "$(virsh -q vol-list kvmctl-images 2>&1)" ]; then
      virsh -q pool-destroy kvmctl-images && virsh -q pool-delete kvmctl-images &&
        virsh -q pool-undefine kvmctl-images || true
    fi
  fi
  if [ "$(id -u)" = 0 ] && [ -f "$qemu_conf" ] && grep -qxF "$no_cgroups" "$qemu_conf"; then
    sed -i "/^cgroup_controllers = .*by kvmctl quickstart$/d" "$qemu_conf"
  fi
  rm -rf "$state/venv" "$state/installed" "$key" "$key.pub" "$state/quickstart.png"
  rmdir "$state" 2>/dev/null || true
  say "Removed. The packages stay; 'apt-get autoremove' and 'apt-get remove libvirt-daemon-system' take them away."
  if [ "$(id -u)" = 0 ] && [ ! -d /run/systemd/system ]; then
    printf 'libvirtd and virtlogd run on, as nobody but you stops them: kill "$(cat /run/libvirt/libvirtd.pid)" "$(cat /run/virtlogd.pid)"\n'
  fi
}

case ${1:-} in
  "") ;;
  --remove) remove_all; exit 0 ;;
  *) die "usage: examples/quickstart.sh [--remove]" ;;
esac

! command -v python3 >/dev/null || check_python
install_packages
check_python
install_kvmctl
start_hypervisor

if ! kvmctl image info "$image" -o name >/dev/null 2>&1; then
  say "Making a Debian 12 image (once, a few minutes)"
  run kvmctl image build "$image"
fi

[ -f "$key" ] || { mkdir -p "$state"; ssh-keygen -q -t ed25519 -N '' -C kvmctl-quickstart -f "$key"; }

if kvmctl info "$vm" -o name >/dev/null 2>&1; then
  say "The guest $vm is there already"
  run kvmctl start "$vm" --wait ssh
else
  say "Creating a guest, and waiting until it can be logged into"
  run kvmctl create "$vm" --image "$image" --memory 1G --disk 4G --net user -p "127.0.0.1:$(free_port):22" \
    --user demo --ssh-key "$key.pub" --wait ssh
fi

say "Logged in by SSH through its published port"
run kvmctl ssh "$vm" --identity "$key" -- 'echo "this is $(hostname), $(uname -sr), user $(id -un)"'

say "A command through the guest agent"
run kvmctl wait "$vm" --for agent
run kvmctl exec "$vm" -- uname -a

say "The guests there are"
run kvmctl list

say "Its screen, as a picture"
run kvmctl screenshot "$vm" "$state/quickstart.png"

say "Done. What to try next"
cat <<EOF
  export PATH=$state/venv/bin:\$PATH LIBVIRT_DEFAULT_URI=$LIBVIRT_DEFAULT_URI
  kvmctl info $vm
  kvmctl ssh $vm --identity $key
  kvmctl console $vm          (leave with Ctrl-])
  kvmctl stop $vm; kvmctl start $vm
  kvmctl --help               every command; each has examples in its --help

To remove it all: examples/quickstart.sh --remove
EOF
