# Compile a C++ model: APPLIANCE_ENTRY is SOURCE:CLASS in the folder APPLIANCE_PATH; the program goes
# to APPLIANCE_OUT. One translation unit: further sources are included by the first; shared libraries
# in the folder's lib/ are linked, and found there again. Runs in a sandbox without network; what the
# compiler says goes to the owner of the model.
set -eu
source=${APPLIANCE_ENTRY%:*}
if [ ! -f "$APPLIANCE_PATH/$source" ]; then
    echo "error: the artifact has no file '$source'"
    exit 1
fi
{
    echo '#include <appliance.hpp>'
    echo "#include \"$APPLIANCE_PATH/$source\""
    echo "int main() { return appliance::serve<${APPLIANCE_ENTRY#*:}>(); }"
} >/tmp/main.cpp
set --
for library in "$APPLIANCE_PATH"/lib/*.so*; do
    [ ! -f "$library" ] || set -- "$@" "$library"
done
exec g++ -std=c++20 -O2 -pthread -fopenmp -Wall -I/run/app -I"$APPLIANCE_PATH" \
    -o "$APPLIANCE_OUT" /tmp/main.cpp "$@"
