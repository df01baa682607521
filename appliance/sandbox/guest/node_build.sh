# Unpacks npm packages where the lock says; run by native_builder.pl inside the build's sandbox.
#
# Owns: /tmp/out from the plan in /data: file, folder, package, apart by tabs.
# Never: runs a script of a package.
set -eu
tab=$(printf '\t')
while IFS="$tab" read -r file place package; do
  echo "unpacking $package"
  mkdir -p "/tmp/out/$place"
  tar -xzf "/data/$file" -C "/tmp/out/$place" --strip-components=1 --no-same-owner ||
    { echo "error: package '$package' cannot be unpacked"; exit 1; }
  if grep -Eq '"(pre|post)?install"[[:space:]]*:' "/tmp/out/$place/package.json" 2>/dev/null; then
    echo "note: $package has an install script, which does not run here"
  fi
done < /data/plan
find /tmp/out ! -type f ! -type d -delete
chmod -R u+rwX,go+rX /tmp/out
