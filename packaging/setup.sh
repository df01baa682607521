# Machine set-up shared by quickstart, test and check; sourced, never run.
# Every function may be called twice; none touches what somebody else made.
# shellcheck shell=bash

set -euo pipefail
umask 022
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
unset PYTHONPATH PYTHONHOME

CLONE=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
PYTHON=/usr/bin/python3 # Debian's: the service user can read it, unlike one in somebody's home.
SUB_ID_COUNT=65536
SUB_ID_FLOOR=589824

say() { printf '%s\n' "$*" >&2; }

# die REASON FIX: end with the reason and what to type.
die() {
    say "error: $1"
    [ -z "${2-}" ] || say "fix:   $2"
    exit "${3-1}"
}

need_root() {
    [ "$(id -u)" = 0 ] || die "this needs root: users, packages and mounts are made" "sudo $0"
}

need_debian() {
    [ -x /usr/bin/apt-get ] && [ -x /usr/bin/dpkg-query ] ||
        die "this machine has no apt-get" "use Debian 12 or later, or a derivative of it"
}

# step TEXT COMMAND...: run a part, its output kept for the case that it fails, and print its time.
# A part says what it did by writing to $NOTE.
STEP=0
step() {
    local text=$1 start code=0
    shift
    STEP=$((STEP + 1))
    start=$(date +%s%N)
    NOTE=$STEP_DIR/note
    : >"$NOTE"
    # In the background and waited for: "set -e" stays in force inside, which "if part" would end.
    ( set -e; "$@" ) >"$STEP_DIR/output" 2>&1 </dev/null &
    wait $! || code=$?
    local took=$((($(date +%s%N) - start) / 10000000))
    printf '[%2d] %-46s %4d.%02d s  %s\n' "$STEP" "$text" $((took / 100)) $((took % 100)) \
        "$( [ "$code" = 0 ] && tr '\n' ' ' <"$NOTE" || echo FAILED )"
    if [ "$code" != 0 ]; then
        tail -n 25 "$STEP_DIR/output" | sed 's/^/     | /' >&2
        die "step $STEP failed: $text" "$(tail -n 1 "$NOTE")"
    fi
}
note() { printf '%s\n' "$*" >>"$NOTE"; }

# fail REASON FIX: end a part; the fix reaches the person through $NOTE.
fail() {
    say "$1"
    note "$2"
    exit 1
}

make_step_dir() {
    STEP_DIR=$(mktemp -d)
    NOTE=$STEP_DIR/note
    trap 'rm -rf -- "$STEP_DIR"' EXIT
}

# missing_packages NAME...: those of the Debian packages that are not installed. A|B: either will do.
missing_packages() {
    local wanted one found
    for wanted in "$@"; do
        found=
        for one in ${wanted//|/ }; do
            if dpkg-query -W -f '${db:Status-Status}\n' "$one" 2>/dev/null | grep -qx installed; then
                found=1
            fi
        done
        [ -n "$found" ] || printf '%s\n' "${wanted%%|*}"
    done
}

# ensure_packages RECORD NAME...: install what is missing; RECORD keeps the names of all that came.
ensure_packages() {
    local record=$1 missing before
    shift
    missing=$(missing_packages "$@")
    if [ -z "$missing" ]; then
        note "nothing missing"
        return
    fi
    before=$(mktemp)
    dpkg-query -W -f '${Package}\n' | sort >"$before"
    # shellcheck disable=SC2086
    apt_install $missing || {
        apt-get -qq update || fail "the package lists cannot be read" "apt-get update"
        apt_install $missing ||
            fail "packages cannot be installed: ${missing//$'\n'/ }" \
                "apt-get install -y ${missing//$'\n'/ }"
    }
    mkdir -p "$(dirname "$record")"
    dpkg-query -W -f '${Package}\n' | sort | comm -13 "$before" - >>"$record"
    rm -f "$before"
    note "installed ${missing//$'\n'/ }"
}

apt_install() { apt-get -qq -y -o Dpkg::Use-Pty=0 install --no-install-recommends "$@"; }

# ensure_user NAME HOME RECORD: a service user with subordinate ids; existing lines stay as they are.
ensure_user() {
    local user=$1 home=$2 record=$3
    if ! getent passwd "$user" >/dev/null; then
        useradd --system --user-group --no-create-home --home-dir "$home" \
            --shell /usr/sbin/nologin "$user"
        mkdir -p "$(dirname "$record")"
        echo "$user" >>"$record"
        note "made user $user;"
    fi
    ensure_sub_ids "$user"
    note "$(id -u "$user"), $(grep "^$user:" /etc/subuid | head -n 1)"
}

# ensure_sub_ids USER: one block of user ids and the same block of group ids; a sandbox's user has
# the same number in both. The next free aligned block above every range, at least the floor.
ensure_sub_ids() {
    local user=$1 start
    touch /etc/subuid /etc/subgid
    if has_sub_ids "$user" /etc/subuid && has_sub_ids "$user" /etc/subgid; then
        return
    fi
    start=$(awk -F: -v s="$SUB_ID_FLOOR" -v n="$SUB_ID_COUNT" \
        '{ e = $2 + $3; if (e > s) s = e } END { print int((s + n - 1) / n) * n }' \
        /etc/subuid /etc/subgid)
    usermod --add-subuids "$start-$((start + SUB_ID_COUNT - 1))" \
        --add-subgids "$start-$((start + SUB_ID_COUNT - 1))" "$user"
}

has_sub_ids() {
    awk -F: -v u="$1" -v n="$SUB_ID_COUNT" '$1 == u && $3 >= n { f = 1 } END { exit !f }' "$2"
}

# ensure_run_dir DIR USER: an empty-at-boot folder for sockets and container state.
ensure_run_dir() {
    local dir=$1 user=$2 kind
    mkdir -p "$dir"
    kind=$(stat -f -c %T "$dir")
    if [ "$kind" != tmpfs ] && [ "$kind" != ramfs ]; then
        mount -t tmpfs -o mode=0711,nosuid,nodev tmpfs "$dir" 2>/dev/null &&
            note "tmpfs mounted" || note "on $kind: a tmpfs cannot be mounted here"
    else
        note "on $kind"
    fi
    chown "$user:$user" "$dir"
    chmod 0711 "$dir"
}

unmount_run_dir() {
    local dir=$1
    while awk -v d="$dir" '$2 == d { f = 1 } END { exit !f }' /proc/mounts; do
        umount "$dir" 2>/dev/null || umount -l "$dir" || return 1
    done
    rm -rf -- "$dir"
}

# as_user USER HOME RUN_DIR COMMAND...: a clean environment, nothing of root's left.
as_user() {
    local user=$1 home=$2 run_dir=$3
    shift 3
    setpriv --reuid "$user" --regid "$user" --init-groups --inh-caps=-all -- \
        env -i HOME="$home" USER="$user" LOGNAME="$user" XDG_RUNTIME_DIR="$run_dir" PATH="$PATH" \
        LC_ALL=C.UTF-8 TMPDIR="${TMPDIR:-/tmp}" "$@"
}

# copy_tree TARGET: the clone without history and caches, readable by everybody.
copy_tree() {
    local target=$1
    rm -rf -- "$target.new"
    mkdir -p "$target.new"
    tar -C "$CLONE" --exclude=./.git --exclude='./.venv*' --exclude=./build --exclude=./dist \
        --exclude='*.egg-info' --exclude=__pycache__ --exclude='.*_cache' --exclude=./.hypothesis \
        --exclude=./shared -cf - . | tar -C "$target.new" --no-same-owner -xf -
    chmod -R u+rwX,go+rX,go-w "$target.new"
    rm -rf -- "$target"
    mv -T "$target.new" "$target"
}

# fingerprint PATH...: one digest of the names and contents of files under the clone.
fingerprint() {
    (
        cd "$CLONE"
        find "$@" -type f ! -path '*/__pycache__/*' ! -name '*.pyc' -print0 | sort -z |
            xargs -0 sha256sum
        readlink -f "$PYTHON"
        "$PYTHON" --version
    ) | sha256sum | cut -d ' ' -f 1
}

# requirements EXTRA...: the dependencies of pyproject.toml, one a line, with those of the extras.
requirements() {
    "$PYTHON" - "$CLONE/pyproject.toml" "$@" <<'END'
import sys, tomllib
with open(sys.argv[1], "rb") as file:
    project = tomllib.load(file)["project"]
lines = list(project["dependencies"])
for extra in sys.argv[2:]:
    lines += project["optional-dependencies"][extra]
print("\n".join(["setuptools>=66,<81", "wheel>=0.40", *lines]))
END
}

# ensure_venv DIR EXTRA...: a virtual environment with the dependencies; skipped when unchanged.
ensure_venv() {
    local dir=$1 wanted mark
    shift
    wanted=$(requirements "$@")
    mark=$({ printf '%s\n' "$wanted"; readlink -f "$PYTHON"; "$PYTHON" --version; } |
        sha256sum | cut -d ' ' -f 1)
    if [ -x "$dir/bin/python" ] && [ "$(cat "$dir/.requirements" 2>/dev/null)" = "$mark" ]; then
        note "dependencies unchanged"
        return
    fi
    [ -x "$dir/bin/python" ] && "$dir/bin/python" -c 'import pip' 2>/dev/null || {
        rm -rf -- "$dir"
        "$PYTHON" -m venv "$dir" ||
            fail "a virtual environment cannot be made" "apt-get install -y python3-venv"
    }
    printf '%s\n' "$wanted" >"$dir/requirements.txt"
    "$dir/bin/python" -m pip install --quiet --only-binary :all: -r "$dir/requirements.txt" ||
        fail "the Python packages cannot be installed" \
            "check the network, or set PIP_INDEX_URL / PIP_FIND_LINKS to a mirror"
    printf '%s\n' "$mark" >"$dir/.requirements"
    note "installed $(printf '%s\n' "$wanted" | wc -l) requirements"
}

# install_package DIR: this clone as an ordinary package; built from a copy, so the clone stays clean.
install_package() {
    local dir=$1 mark work
    mark=$(fingerprint pyproject.toml README.md appliance tui)
    if [ "$(cat "$dir/.package" 2>/dev/null)" = "$mark" ]; then
        note "unchanged"
        return
    fi
    work=$(mktemp -d)
    cp -R "$CLONE/pyproject.toml" "$CLONE/README.md" "$CLONE/appliance" "$CLONE/tui" "$work"
    "$dir/bin/python" -m pip install --quiet --no-deps --no-build-isolation --no-index \
        --force-reinstall "$work" || fail "the package cannot be built" "packaging/check"
    rm -rf -- "$work"
    "$dir/bin/python" -m compileall -q "$dir/lib" >/dev/null 2>&1 || true
    printf '%s\n' "$mark" >"$dir/.package"
    note "installed $("$dir/bin/appliance" --version)"
}
