#!/usr/bin/env bash
# A measured boot, shown on one machine: OVMF measures itself, its settings and the kernel into a TPM (swtpm),
# the guest quotes it, and `cloister enclave verify` replays the event log and checks the quote.
#
#     examples/measured-boot/run.sh OUT
#
# needs qemu-system-x86, ovmf, swtpm, tpm2-tools, busybox-static and cpio (Debian), and `apt-get download` for a
# kernel; KERNEL=/path/to/vmlinuz uses another one, whose TPM driver must be built in. CLOISTER names the command
# to verify with. ACCEL=kvm is faster where it works. A software TPM vouches for this boot: it is a demonstration, not hardware-protected.
set -euo pipefail
out=$(mkdir -p "${1:?usage: run.sh OUT}" && cd "$1" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
cloister=${CLOISTER:-cloister}
work=$(mktemp -d)
swtpm_pid=
trap '[ -z "$swtpm_pid" ] || kill "$swtpm_pid" 2>/dev/null || true; rm -rf "$work"' EXIT
for tool in qemu-system-x86_64 swtpm tpm2 busybox cpio python3; do
  command -v "$tool" >/dev/null || { echo "$tool is missing: install qemu-system-x86 ovmf swtpm tpm2-tools busybox-static cpio" >&2; exit 2; }
done

kernel=${KERNEL:-}
if [ -z "$kernel" ]; then
  name=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/ {print $2; exit}')
  (cd "$work" && apt-get download -q "$name" >/dev/null 2>&1 && dpkg-deb -x "$name"_*.deb kernel)
  kernel=$(ls "$work"/kernel/boot/vmlinuz-*)
fi

# an initial file system of one shell, one program and the libraries it loads
root=$work/root
mkdir -p "$root"/{bin,lib,lib64,proc,sys,dev,tmp}
cp "$here/guest-init" "$root/init"; chmod 755 "$root/init"
cp "$(command -v busybox)" "$root/bin/busybox"
cp "$(command -v tpm2)" "$root/bin/tpm2"
loaded=$(dpkg -L libtss2-tcti-device0 | grep '\.so\.0$' | head -1)
for object in "$(command -v tpm2)" "$loaded"; do
  ldd "$object" | grep -o '/[^ ]*' | sort -u | while read -r library; do cp -Ln "$library" "$root/lib/" 2>/dev/null || true; done
done
cp -L "$loaded" "$root/lib/"
cp -L /lib64/ld-linux-x86-64.so.2 "$root/lib64/"
(cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) > "$work/initrd"

mkdir "$work/tpm"
swtpm socket --tpm2 --tpmstate "dir=$work/tpm" --ctrl "type=unixio,path=$work/ctrl" --flags startup-clear &
swtpm_pid=$!
nonce=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
cp /usr/share/OVMF/OVMF_VARS_4M.fd "$work/vars"
accel=${ACCEL:-tcg}
for _ in $(seq 50); do [ -S "$work/ctrl" ] && break; sleep 0.1; done
echo "Booting; without KVM this takes a minute."
timeout 300 qemu-system-x86_64 -machine "q35,accel=$accel" -cpu max -m 1024 -nographic -no-reboot -net none \
  -drive "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd" \
  -drive "if=pflash,format=raw,file=$work/vars" \
  -chardev "socket,id=tpm,path=$work/ctrl" -tpmdev emulator,id=tpm0,chardev=tpm -device tpm-crb,tpmdev=tpm0 \
  -kernel "$kernel" -initrd "$work/initrd" -append "console=ttyS0 quiet panic=-1 cloister.nonce=$nonce" \
  > "$out/console.txt" < /dev/null || { tail -5 "$out/console.txt" >&2; echo "the guest did not boot" >&2; exit 1; }

python3 "$here/collect.py" "$out"
"$cloister" enclave pack tpm "$out/evidence.quote.json" --endorse "ak=$out/ak.der" --event-log "$out/eventlog" --out "$out/evidence.json"
cat > "$out/policy.toml" <<'POLICY'
kinds = ["tpm"]
allow_software_tee = true
allow_self_reported = true
POLICY
echo "nonce: $nonce" | tee "$out/nonce.txt"
"$cloister" enclave verify "$out/evidence.json" --policy "$out/policy.toml" --nonce "$nonce" --raw-nonce
