# Installs R packages; run by native_builder.pl inside the build's sandbox.
#
# Owns: /tmp/out, an R library, from the plan in /data: file and package, apart by a tab.
# Never: fetches anything, or compiles: there is no compiler here.
set -eu
tab=$(printf '\t')
mkdir -p /tmp/out
export R_LIBS=/tmp/out
while IFS="$tab" read -r file package; do
  echo "installing $file"
  case "$file" in
  *.deb)
    mkdir /tmp/deb
    dpkg-deb --fsys-tarfile "/data/$file" |
      tar -xf - -C /tmp/deb --no-same-owner --wildcards './usr/lib/R/site-library/*' ||
      { echo "error: package '$package' holds no R package"; exit 1; }
    cp -R /tmp/deb/usr/lib/R/site-library/* /tmp/out/
    rm -rf /tmp/deb
    ;;
  *)
    /usr/bin/R CMD INSTALL --no-docs --no-multiarch --no-test-load -l /tmp/out "/data/$file" ||
      { echo "error: package '$package' does not install (there is no compiler here: bring a built one)"; exit 1; }
    ;;
  esac
done < /data/plan
find /tmp/out ! -type f ! -type d -delete
chmod -R u+rwX,go+rX /tmp/out
