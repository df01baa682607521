# Installs gems; run by native_builder.pl inside the build's sandbox.
#
# Owns: /tmp/out, a gem home, from the plan in /data: file and gem, apart by a tab.
# Never: fetches anything; what a gem needs in turn is in the plan.
set -eu
tab=$(printf '\t')
while IFS="$tab" read -r file gem; do
  echo "installing $file"
  /usr/bin/gem3.1 install --local --ignore-dependencies --no-document --no-user-install \
    --install-dir /tmp/out --bindir /tmp/out/bin "/data/$file" ||
    { echo "error: gem '$gem' does not install (there is no compiler here: bring a built gem)"; exit 1; }
done < /data/plan
rm -rf /tmp/out/cache /tmp/out/doc /tmp/out/build_info /tmp/out/plugins
find /tmp/out ! -type f ! -type d -delete
chmod -R u+rwX,go+rX /tmp/out
