# holder.sh RIG HOST SHARED...: the process that keeps a host of the rig alive. Run as the first one in its namespaces.
# Only SHARED of /tmp is seen on a node; all else in its /tmp is its own.
set -eu
rig=$1 name=$2; shift 2
# As the rig knows it, whose /proc this still is.
read -r pid rest < /proc/self/stat
hostname "$name"
ip link set lo up
mount --bind "$rig/etc-hosts" /etc/hosts
if [ "$name" != login ]; then
    mount -t proc proc /proc
    mount -t tmpfs -o mode=1777 tmpfs /dev/shm
    mkdir -p "$rig/$name.tmp"
    mount -t tmpfs -o mode=1777 tmpfs "$rig/$name.tmp"
    for shared; do
        case $shared in /tmp/*)
            mkdir -p "$rig/$name.tmp/${shared#/tmp/}"
            mount --bind "$shared" "$rig/$name.tmp/${shared#/tmp/}";;
        esac
    done
    mount --move "$rig/$name.tmp" /tmp
fi
echo "$pid" > "$rig/$name.pid.new"
mv "$rig/$name.pid.new" "$rig/$name.pid"
# The kernel reaps orphans where SIGCHLD is ignored.
exec env --ignore-signal=CHLD sleep infinity
