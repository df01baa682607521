# Compile a C# model and its runner: APPLIANCE_ENTRY is SOURCE:CLASS (or DLL:CLASS, with nothing but
# the runner to compile) in the folder APPLIANCE_PATH; the program goes to APPLIANCE_OUT. Every C#
# source of the folder is part of the model; assemblies beside it and in its lib/ are referenced. Runs
# in a sandbox without network; what the compiler says goes to the owner of the model.
set -eu
cd "$APPLIANCE_PATH"
source=${APPLIANCE_ENTRY%:*}
if [ ! -f "$source" ]; then
    echo "error: the artifact has no file '$source'"
    exit 1
fi
: >/tmp/arguments
case $source in *.cs)
    find . -name '*.cs' -not -path './bin/*' -not -path './obj/*' -printf '"%P"\n' | sort >>/tmp/arguments
    find . lib -maxdepth 1 -name '*.dll' -printf '-r:"%p"\n' 2>/dev/null | sort -u >>/tmp/arguments || true
    ;;
esac
export MONO_GC_PARAMS=max-heap-size=448m
# Its name is the assembly's own: never that of a model.
mcs -target:exe -out:/tmp/DotnetRunner.exe -main:DotnetRunner -langversion:latest -optimize+ -unsafe+ \
    -codepage:utf8 -warn:2 -lib:/usr/lib/mono/4.5/Facades -r:netstandard.dll -r:System.Runtime.dll \
    -r:Microsoft.CSharp.dll -r:System.Core.dll -r:System.IO.Compression.dll -r:System.Numerics.dll \
    -r:System.Numerics.Vectors.dll -r:System.Runtime.Serialization.dll -r:System.Xml.dll \
    -r:System.Xml.Linq.dll @/tmp/arguments /run/app/DotnetRunner.cs /run/app/DotnetCalling.cs
mv /tmp/DotnetRunner.exe "$APPLIANCE_OUT"
