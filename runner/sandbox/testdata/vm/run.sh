#!/bin/sh
# run.sh [REGEXP]: runs compiled tests in a virtual machine with Debian's
# kernel and control groups of version 2 alone. It needs root, for the file
# system, and qemu, mmdebstrap and cpio; without them it says so and skips.
# Everything lies in a temporary folder. KILN_VM_ACCEL (tcg) may be kvm,
# KILN_VM_KERNEL another package, and KILN_VM_SUITE (bookworm) another Debian.
set -eu
top=$(git rev-parse --show-toplevel)
accel=${KILN_VM_ACCEL:-tcg,thread=multi}
suite=${KILN_VM_SUITE:-bookworm}
kernel=${KILN_VM_KERNEL:-linux-image-cloud-amd64}
pattern=${1:-.}
packages="runner/sandbox/cgroup runner/sandbox runner/overlay runner/rootless runner/oci runner/container"

skip() { echo "test-vm: skipped: $*"; exit 0; }
[ "$(id -u)" = 0 ] || skip "needs root"
for p in qemu-system-x86_64 mmdebstrap mke2fs cpio; do
	command -v $p >/dev/null || skip "needs $p: apt-get install qemu-system-x86 mmdebstrap e2fsprogs cpio"
done

dir=$(mktemp -d)
qemu=
trap '[ -z "$qemu" ] || kill "$qemu" 2>/dev/null; rm -rf "$dir"' EXIT

# Programs that tests build are handed out by a "go" that looks by name.
mkdir -p "$dir/kiln/bin"
cd "$top"
make -s init
for arch in amd64 arm64; do
	GOARCH=$arch CGO_ENABLED=0 go build -o "$dir/kiln/bin/box-$arch" ./runner/sandbox/testdata/box
done
cp runner/sandbox/initbin/init "$dir/kiln/bin/init-amd64"
cat >"$dir/kiln/bin/go" <<'GO'
#!/bin/sh
out= name=
while [ $# -gt 0 ]; do
	case $1 in
	-o) out=$2; shift ;;
	*/box) name=box ;;
	*/init) name=init ;;
	esac
	shift
done
exec cp "/kiln/bin/$name-${GOARCH:-amd64}" "$out"
GO
chmod 755 "$dir/kiln/bin/go"
for p in $packages; do
	mkdir -p "$dir/kiln/$p"
	CGO_ENABLED=0 go test -c -o "$dir/kiln/$p/x.test" "./$p"
	[ ! -d "$p/testdata" ] || cp -a "$p/testdata" "$dir/kiln/$p/"
done

# A shell is process 1: it mounts, runs the tests and turns the machine off.
cat >"$dir/kiln/init" <<'INIT'
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -o remount,rw /
mkdir -p /dev/pts /dev/shm
mount -t devpts -o ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
modprobe -a overlay fuse binfmt_misc
ip link set lo up
export PATH=/kiln/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TMPDIR=/var/tmp KILN_TEST_INIT=/kiln/bin/init-amd64
mkdir /sys/fs/cgroup/tests # the first group may do what others may not
echo $$ >/sys/fs/cgroup/tests/cgroup.procs
echo "== Linux $(uname -r), control groups: $(cat /sys/fs/cgroup/cgroup.controllers)"
while read -r p; do
	echo "== $p"
	cd "/kiln/$p" && ./x.test -test.v -test.timeout 20m -test.run "$(cat /kiln/pattern)" 2>&1 | tee log
	grep -q '^PASS$' log || failed=1
done </kiln/packages
echo "== ${failed:+failed}${failed:-passed}"
sync
echo o >/proc/sysrq-trigger
sleep 100
INIT
chmod 755 "$dir/kiln/init"
printf '%s\n' $packages >"$dir/kiln/packages"
echo "$pattern" >"$dir/kiln/pattern"

echo "test-vm: making a Debian $suite with $kernel"
mmdebstrap --quiet --variant=minbase --include="$kernel,kmod,iproute2,uidmap,runc,busybox-static,qemu-user-static,git" \
	--aptopt='APT::Sandbox::User "root"' "$suite" "$dir/root" >"$dir/log" 2>&1 || { tail "$dir/log"; exit 1; }
mv "$dir/kiln" "$dir/root/kiln"
release=$(ls "$dir/root/lib/modules")
mke2fs -q -t ext4 -d "$dir/root" "$dir/disk" 4G 2>/dev/null

# The kernel's own modules find the disk.
mkdir -p "$dir/initrd/bin" "$dir/initrd/proc" "$dir/initrd/dev" "$dir/initrd/root" "$dir/initrd/modules"
cp "$dir/root/bin/busybox" "$dir/initrd/bin/"
n=100
for m in $(for m in virtio_pci virtio_blk ext4; do
	chroot "$dir/root" modprobe -S "$release" --show-depends "$m"
done | sed -n 's/^insmod //p' | awk '!seen[$0]++'); do
	n=$((n + 1))
	cp "$dir/root/$m" "$dir/initrd/modules/$n-$(basename "$m")"
done
find "$dir/initrd/modules" -name '*.xz' -exec xz -d {} +
cat >"$dir/initrd/init" <<'INIT'
#!/bin/busybox sh
busybox=/bin/busybox
$busybox mount -t proc proc /proc
$busybox mount -t devtmpfs devtmpfs /dev
for m in /modules/*; do $busybox insmod $m; done
while [ ! -b /dev/vda ]; do $busybox sleep 0.1; done
$busybox mount -t ext4 /dev/vda /root
$busybox mount --move /dev /root/dev
$busybox umount /proc
exec $busybox switch_root /root /kiln/init
INIT
chmod 755 "$dir/initrd/init"
(cd "$dir/initrd" && find . | cpio -o -H newc --quiet) >"$dir/initrd.img"

qemu-system-x86_64 -accel "$accel" -cpu max -smp 2 -m 2048 -nodefaults -no-user-config -display none -no-reboot \
	-drive "file=$dir/disk,if=virtio,format=raw,cache=unsafe" -device virtio-rng-pci -serial "file:$dir/console" \
	-kernel "$dir/root/boot/vmlinuz-$release" -initrd "$dir/initrd.img" -append "console=ttyS0 quiet panic=-1" &
qemu=$!
wait "$qemu" || true
qemu=
tr -d '\r' <"$dir/console" | grep -a -A4 -E '^==|^ *--- (FAIL|SKIP)|^panic' | grep -av -E -- '--- PASS|=== RUN'
grep -aq '^== passed' "$dir/console"
