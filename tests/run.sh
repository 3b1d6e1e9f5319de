#!/bin/bash
# Installs what the tests need, checks the code, and runs the tests.
#
#   tests/run.sh                    everything but the long matrices
#   tests/run.sh --full             those as well
#   tests/run.sh [--full] ARGS...   pytest with these arguments (paths, -k ...) in place of all tests
#
# As root, or with sudo that asks nothing, the lab's tests run too: two libvirt hosts in network namespaces.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

full=no
if [ "${1:-}" = --full ]; then
    full=yes
    shift
fi
arguments=("$@")
failed=()
summary=()

# Where /tmp is in memory, as on Debian 13, the lab's disks would fill it.
if [ -z "${TMPDIR:-}" ] && [ "$(stat -f -c %T /tmp)" = tmpfs ]; then
    export TMPDIR=/var/tmp
fi

say() { printf '\n== %s\n' "$*"; }

# ------------------------------------------------------------------ what the tests need

privileged=()
may_be_root=yes
if [ "$(id -u)" != 0 ]; then
    if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        privileged=(sudo -n)
    else
        may_be_root=no
    fi
fi

missing_packages() {
    local package
    grep -Ev '^[[:space:]]*(#|$)' tests/packages.txt | while read -r package; do
        case $package in
            # Only where the distribution has such a package.
            *\?) package=${package%\?}; apt-cache show "$package" >/dev/null 2>&1 || continue ;;
        esac
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || echo "$package"
    done
}

install_packages() {
    local missing
    command -v dpkg-query >/dev/null || {
        say "this is no Debian: what tests/packages.txt lists must be there already"
        return 0
    }
    mapfile -t missing < <(missing_packages)
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ $may_be_root = no ]; then
        say "not installed, and only root could: ${missing[*]}"
        return 0
    fi
    say "installing ${missing[*]}"
    local apt=("${privileged[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -y -qq -o DPkg::Lock::Timeout=600)
    update_lists && "${apt[@]}" install --no-install-recommends "${missing[@]}" >/dev/null
}

# apt, which can wait for its turn to install, cannot wait for its lists, which a fresh machine brings up to date itself.
update_lists() {
    local said
    until said=$("${privileged[@]}" env LC_ALL=C.UTF-8 apt-get -qq update 2>&1); do
        printf '%s\n' "$said" >&2
        [[ $said = *"Could not get lock"* ]] || return 1
        sleep 5
    done
}

# apt's lists tell which packages there are, and which kernel the guests get; a fresh machine has none of them.
know_packages() {
    [ $may_be_root = yes ] && command -v apt-cache >/dev/null || return 0
    [ -n "$(apt-cache policy linux-image-cloud-amd64 linux-image-virtual 2>/dev/null)" ] ||
        update_lists
}

make_environment() {
    local stamp
    stamp="$(sha256sum pyproject.toml) $(/usr/bin/python3 -V)"
    [ "$(cat .venv/stamp 2>/dev/null)" = "$stamp" ] && return 0
    say "making .venv"
    rm -rf .venv
    # The system's packages are visible in it: libvirt-python comes from there.
    /usr/bin/python3 -m venv --system-site-packages .venv &&
        .venv/bin/pip install --quiet --disable-pip-version-check --editable '.[test]' &&
        echo "$stamp" >.venv/stamp
}

if [ -x /usr/bin/python3 ] && ! /usr/bin/python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    say "kvmctl needs Python 3.11, and this system has $(/usr/bin/python3 -V): use Debian 12, Ubuntu 24.04 or newer"
    exit 1
fi
know_packages || { say "apt has no package lists"; exit 1; }
install_packages || { say "the packages could not be installed"; exit 1; }
make_environment || { say "the Python environment could not be made"; exit 1; }

# ------------------------------------------------------------------ the checks

check() {
    local name=$1
    shift
    say "$name"
    "$@" || failed+=("$name")
}

# Runs pytest and keeps its closing line for the end.
tests() {
    local name=$1 log
    shift
    log=$(mktemp)
    say "$name"
    if ! "$@" 2>&1 | tee "$log"; then
        failed+=("$name")
    fi
    summary+=("$(grep -E '(passed|failed|error|skipped|deselected|no tests ran)' "$log" | tail -n 1)")
    rm -f "$log"
}

pytest=(.venv/bin/python -m pytest -o faulthandler_timeout=900)
lab=("${pytest[@]}" -n 2 --durations 15)
[ $full = yes ] || lab+=(-m 'not full')
if [ $may_be_root = yes ]; then
    lab=("${privileged[@]}" env KVMCTL_TEST_LAB=required PATH="$PATH:/usr/sbin:/sbin" CI="${CI:-}" ${TMPDIR:+"TMPDIR=$TMPDIR"} "${lab[@]}")
fi

scripts() {
    local file
    for file in "$@"; do
        bash -n "$file" || return 1
    done
    ! command -v shellcheck >/dev/null || shellcheck -S warning "$@"
}

mapfile -t shell_files < <(git ls-files '*.sh' .ci/run)
check "shell scripts" scripts "${shell_files[@]}"
check "ruff check" .venv/bin/ruff check .
check "ruff format" .venv/bin/ruff format --check .
check "mypy" .venv/bin/mypy
if [ ${#arguments[@]} -gt 0 ]; then
    tests "pytest ${arguments[*]}" "${lab[@]}" "${arguments[@]}"
else
    tests "unit tests" "${pytest[@]}" tests/unit
    if [ $may_be_root = yes ]; then
        tests "lab tests" "${lab[@]}" tests/lab
    else
        say "left out: the lab's tests, which need root (network namespaces, mounts, libvirtd)"
    fi
fi

# ------------------------------------------------------------------ how it went

say "summary"
if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}"
fi
[ ${#summary[@]} -eq 0 ] || printf '%s\n' "${summary[@]}"
[ ${#failed[@]} -eq 0 ]
