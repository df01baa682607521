# Compile a Java model and its runner: APPLIANCE_ENTRY is SOURCE:CLASS (or JAR:CLASS, with nothing but
# the runner to compile) in the folder APPLIANCE_PATH; the jar goes to APPLIANCE_OUT. Further sources
# are found by class name, jars in the folder and in its lib/. Runs in a sandbox without network; what
# the compiler says goes to the owner of the model.
set -eu
source=$APPLIANCE_PATH/${APPLIANCE_ENTRY%:*}
if [ ! -f "$source" ]; then
    echo "error: the artifact has no file '${APPLIANCE_ENTRY%:*}'"
    exit 1
fi
sources='/run/app/JavaRunner.java /run/app/Models.java'
case $source in *.java) sources="$sources $source" ;; esac
classpath=$APPLIANCE_PATH:$APPLIANCE_PATH/*:$APPLIANCE_PATH/lib/*${APPLIANCE_DEPS:+:$APPLIANCE_DEPS/*}
options='-J-Xmx384m -J-XX:+UseSerialGC -J-XX:-UsePerfData -J-XX:TieredStopAtLevel=1'
mkdir /tmp/classes
# shellcheck disable=SC2086
javac $options -proc:none -encoding UTF-8 -g -d /tmp/classes -cp "$classpath" \
    -sourcepath "$APPLIANCE_PATH" $sources
class=$(echo "${APPLIANCE_ENTRY#*:}" | tr . /)
case $source in
*.java)
    if [ ! -f "/tmp/classes/$class.class" ]; then
        echo "error: '${APPLIANCE_ENTRY%:*}' has no class '${APPLIANCE_ENTRY#*:}'"
        exit 1
    fi
    ;;
esac
# shellcheck disable=SC2086
exec jar $options --create --file="$APPLIANCE_OUT" -C /tmp/classes .
