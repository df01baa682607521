#!/bin/sh
# Write this example's image into an OCI archive, with Podman alone: no registry, no Dockerfile.
#
#   sh image.sh ROOTFS ARCHIVE
#
# ROOTFS is any root folder with Python, such as that of an installed runtime ("appliance runtime
# list" names it); with a registry at hand one would build FROM an image of Python's instead.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
run=$(mktemp -d "${XDG_RUNTIME_DIR:-/tmp}/img-XXXXXX") # at most 50 characters for Podman
store="--root $work/root --runroot $run/r --storage-driver vfs --events-backend none"
export XDG_RUNTIME_DIR="$run" # a Podman of our own, ended at the end
end() {
    podman $store unshare rm -rf "$work" || true
    kill "$(cat "$run/libpod/tmp/pause.pid")" 2> /dev/null || true
    rm -rf "$work" "$run"
}
trap end EXIT
tar -C "$1" --exclude=./dev --exclude=./proc --exclude=./sys --exclude=./srv -cf "$work/base.tar" .
mkdir -p "$work/top/srv"
cp "$here/server.py" "$work/top/srv/server.py"
printf '#!/bin/sh\nexec /usr/bin/python3.11 -u /srv/server.py "$@"\n' > "$work/top/srv/start"
chmod 755 "$work/top/srv/start"
tar -C "$work/top" -rf "$work/base.tar" srv
podman $store import --quiet --change 'ENTRYPOINT ["/srv/start"]' --change 'WORKDIR /srv' \
    --change 'EXPOSE 8080' "$work/base.tar" localhost/churn-server:1 > /dev/null
podman $store save --quiet --format oci-archive -o "$2" localhost/churn-server:1
