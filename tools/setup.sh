# shellcheck shell=sh
# Read by tools/demo and tools/test: makes a bare Debian 12 machine ready for porthold. POSIX sh.
#
# Rule 1: what is done already is not done again. A stamp in .venv, made from everything that the
#   environment depends on, says so; a second run costs milliseconds.
# Rule 2: the stamp is written last and taken away first, so a set-up that was interrupted is done again;
#   an environment left half made is thrown away.
# Rule 3: one set-up at a time: the directory of the checkout is locked meanwhile.
# Rule 4: what can't be had ends the run, with what it is and how to get it.
#
# The caller has set $root to the checkout and then calls, in this order:
#   require_python; prepare_system runtime|dev; require_kernel; prepare_environment runtime|dev

PATH=$PATH:/usr/sbin:/sbin:/usr/bin:/bin # nft and ip live in sbin, which a plain user's PATH may lack
export PATH
unset PYTHONPATH PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX PIP_REQUIRE_VIRTUALENV
export PIP_DISABLE_PIP_VERSION_CHECK=1
environment=${root:?set by the caller}/.venv

say() { printf 'porthold: %s\n' "$*" >&2; }

fail() {
    say "$@"
    exit 1
}

# Sets $python: Debian's own first, because python3-venv and python3-dev are made for that one.
require_python() {
    for python in "${PORTHOLD_PYTHON:-/usr/bin/python3}" python3 python3.14 python3.13 python3.12 python3.11; do
        python=$(command -v "$python") || continue
        # The minor version only: apt-get may bring a new patch release, which an environment outlives.
        python_identity=$("$python" -c 'import sys
if sys.version_info < (3, 11): sys.exit(1)
print(sys.base_prefix, sys.implementation.cache_tag)' 2>/dev/null) && return
    done
    fail 'no Python 3.11 or newer. Debian 12 has it: apt-get install python3. Elsewhere: PORTHOLD_PYTHON=/path/to/python3'
}

has_file() {
    for found in "$@"; do [ -e "$found" ] && return; done
    return 1
}

# The Debian packages that are missing, looked for by what they bring (on other systems they have other names).
missing_packages() {
    command -v nft >/dev/null || echo nftables
    command -v iptables >/dev/null || echo iptables
    command -v conntrack >/dev/null || echo conntrack
    command -v ip >/dev/null || echo iproute2
    has_file /usr/lib/*/libnftables.so.1 /usr/lib*/libnftables.so.1 || echo libnftables1
    has_file /usr/lib/*/libnetfilter_queue.so.1 /usr/lib*/libnetfilter_queue.so.1 || echo libnetfilter-queue1
    has_file /usr/include/libnetfilter_queue/libnetfilter_queue.h || echo libnetfilter-queue-dev
    command -v gcc >/dev/null || echo gcc
    has_file /usr/include/stdio.h || echo libc6-dev
    "$python" -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
    "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' || echo python3-dev
    [ "$1" = dev ] || return 0
    # What the tests use besides: the model checker, somebody else's IPFIX reader, a faulty file layer, a shell.
    command -v spin >/dev/null || echo spin
    command -v nfdump >/dev/null || echo nfdump
    command -v sqlite3 >/dev/null || echo sqlite3
    command -v systemd-analyze >/dev/null || echo systemd
    has_file /usr/lib/python3/dist-packages/apsw* || echo python3-apsw
}

# $1: runtime, or dev for what the tests need besides.
prepare_system() {
    missing=$(missing_packages "$1" | tr '\n' ' ')
    missing=${missing% }
    [ -n "$missing" ] || return 0
    command -v apt-get >/dev/null ||
        fail "missing on this machine, by Debian's names: $missing. There is no apt-get here to install them: use this system's own packages."
    [ "$(id -u)" = 0 ] ||
        fail "missing Debian packages. As root: apt-get update && apt-get install $missing"
    lock_checkout
    missing=$(missing_packages "$1" | tr '\n' ' ') # again: another set-up may have brought them while this one waited
    missing=${missing% }
    [ -n "$missing" ] || return 0
    say "installing Debian packages: $missing"
    log=$(mktemp)
    # A list that can't be renewed (one dead source among many) is no reason to stop: the installation decides.
    # shellcheck disable=SC2086 # package names are words
    { DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 update ||
        echo '(apt-get update failed)'
    DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends $missing
    } >"$log" 2>&1 </dev/null || {
        tail -n 15 "$log" >&2
        rm -f "$log"
        fail "apt-get could not install: $missing (its last words are above). Needed: Debian's package source, from the network or a mirror."
    }
    rm -f "$log"
    missing=$(missing_packages "$1" | tr '\n' ' ')
    [ -z "$missing" ] ||
        fail "still missing after installation: $missing. Is $python not Debian's own? Then PORTHOLD_PYTHON=/usr/bin/python3 helps."
}

# Taken once and kept until unlock_checkout or the end; a lock on the directory leaves no file behind.
lock_checkout() {
    [ -z "${locked-}" ] || return 0
    exec 9<"$root"
    flock -n 9 || {
        say 'waiting for another set-up of this checkout to end'
        flock 9
    }
    locked=yes
}

unlock_checkout() {
    [ -n "${locked-}" ] || return 0
    exec 9<&- # children must not inherit it: the demonstration's would hold it on
    locked=
}

# $1: runtime, or dev for what the tests need besides.
prepare_environment() {
    identity="$root $python_identity"
    key=$( (printf '%s\n' "$identity" && cat "$root/pyproject.toml" "$root/requirements.txt") | sha256sum)
    if is_ready "$1"; then
        unlock_checkout
        return
    fi
    lock_checkout
    is_ready "$1" || install_environment "$1" # another set-up may have done it while this one waited
    unlock_checkout
}

# While a set-up changes the environment there is no stamp, so nobody else starts to use it.
is_ready() { [ "$(cat "$environment/ready-for-$1" 2>/dev/null)" = "$key" ]; }

install_environment() {
    [ -w "$root" ] || fail "no right to write in $root, where .venv goes"
    if [ -e "$environment" ] && { [ -e "$environment/unfinished" ] ||
        [ "$(cat "$environment/made-for" 2>/dev/null)" != "$identity" ]; }; then
        say 'the environment in .venv is half made, moved, or of another Python: making it anew'
        rm -rf "$environment"
    fi
    { mkdir -p "$environment" && : >"$environment/unfinished"; } || fail "can't write in $environment"
    rm -f "$environment/ready-for-runtime" "$environment/ready-for-dev"
    log=$environment/setup.log
    : >"$log"
    if [ ! -e "$environment/made-for" ]; then
        say "making a Python environment in .venv ($("$python" --version))"
        logged "$python" -m venv "$environment"
        printf '%s\n' "$identity" >"$environment/made-for"
    fi
    case $1 in dev) wanted="${root}[dev]" ;; *) wanted=$root ;; esac
    say "installing pinned Python packages ($1; details in .venv/setup.log)"
    # What builds packages comes first, and they are built without isolation: with what is pinned here, not with
    # the newest. netfilterqueue needs cython: the C file it carries does not compile on Python 3.11.
    logged "$environment/bin/python" -m pip install -c "$root/requirements.txt" pip setuptools wheel cython
    logged "$environment/bin/python" -m pip install --no-build-isolation -c "$root/requirements.txt" -e "$wanted"
    logged "$environment/bin/python" -m pip check
    printf '%s\n' "$key" >"$environment/ready-for-runtime"
    [ "$1" = runtime ] || printf '%s\n' "$key" >"$environment/ready-for-dev"
    rm "$environment/unfinished"
}

logged() {
    "$@" >>"$log" 2>&1 </dev/null 9<&- || {
        tail -n 15 "$log" >&2
        fail "failed: $* (its last words are above, all of them in .venv/setup.log). If it found no versions: it needs a Python package index, from the network or a mirror that pip knows of. Run this again then: it starts afresh."
    }
}

# The kernel must let root make a namespace, load nftables with NAT there, and queue packets to a process.
require_kernel() {
    [ "$(id -u)" = 0 ] ||
        fail 'the network namespaces and netfilter rules need root: run this with sudo, or as root.'
    unshare --net true 2>/dev/null ||
        fail 'this machine lets not even root make a network namespace (a container?). Needed: a virtual or real machine, or the capabilities NET_ADMIN and SYS_ADMIN.'
    probe='table ip probe { chain c { type nat hook postrouting priority 100; oifname "probe" masquerade; }; }'
    unshare --net nft "$probe" 2>/dev/null ||
        fail "this kernel has no nftables with NAT. Needed: CONFIG_NF_TABLES, CONFIG_NFT_NAT, CONFIG_NFT_MASQ; Debian's own kernel has them: apt-get install linux-image-$(dpkg --print-architecture 2>/dev/null || echo amd64)"
    probe='table ip probe { chain c { type filter hook forward priority 0; queue num 1; }; }'
    unshare --net nft "$probe" 2>/dev/null ||
        unshare --net iptables-nft -A FORWARD -j NFQUEUE --queue-num 1 2>/dev/null ||
        fail "this kernel can't queue packets to a process. Needed: CONFIG_NFT_QUEUE or CONFIG_NETFILTER_XT_TARGET_NFQUEUE, and CONFIG_NETFILTER_NETLINK_QUEUE; Debian's own kernel has them: apt-get install linux-image-$(dpkg --print-architecture 2>/dev/null || echo amd64)"
}
