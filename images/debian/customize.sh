#!/bin/sh
# Makes an ordinary cloud image out of a bare Debian tree. mmdebstrap runs it with the tree's path.
set -eu
root=$1
: "${ROOT_UUID:?}" "${ESP_UUID:?}"

echo debian >"$root/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 debian\n::1 localhost ip6-localhost ip6-loopback\n' >"$root/etc/hosts"
cat >"$root/etc/fstab" <<EOT
UUID=$ROOT_UUID / ext4 errors=remount-ro 0 1
UUID=$ESP_UUID /boot/efi vfat umask=0077,noauto,x-systemd.automount 0 0
EOT
mkdir -p "$root/boot/efi"

# DHCP on whatever Ethernet port there is.
cat >"$root/etc/systemd/network/80-dhcp.network" <<EOT
[Match]
Name=en* eth*

[Network]
DHCP=yes
EOT

chroot "$root" useradd --create-home --shell /bin/bash --groups sudo debian
echo debian:debian | chroot "$root" chpasswd

chroot "$root" systemctl -q enable systemd-networkd.service
# What an image for short-lived servers leaves out: it costs boot time and does nothing there.
chroot "$root" systemctl -q disable systemd-networkd-wait-online.service
chroot "$root" systemctl -q mask systemd-firstboot.service apt-daily.timer apt-daily-upgrade.timer \
	dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer systemd-pstore.service \
	dev-hugepages.mount sys-kernel-debug.mount sys-kernel-tracing.mount
# The image is as new as its /usr: nothing to bring up to date on first boot (systemd-update-done.service(8)).
touch "$root/etc/.updated" "$root/var/.updated"
# Every copy draws its own on first boot; DHCP identities follow from it.
: >"$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id" "$root/etc/resolv.conf"

cat >"$root/etc/default/grub" <<EOT
GRUB_DEFAULT=0
GRUB_TIMEOUT=0
GRUB_DISTRIBUTOR=Debian
GRUB_CMDLINE_LINUX_DEFAULT="quiet"
GRUB_CMDLINE_LINUX="console=ttyS0,115200"
GRUB_TERMINAL_OUTPUT=console
EOT
# update-grub asks grub-probe about the disk it runs from. There is none yet, so the answers that the finished
# disk will give are given for it; grub-mkconfig itself is Debian's.
mv "$root/usr/sbin/grub-probe" "$root/usr/sbin/grub-probe.real"
cat >"$root/usr/sbin/grub-probe" <<EOT
#!/bin/sh
case "\$*" in
*fs_uuid*) echo $ROOT_UUID ;;
*partuuid*) ;;
*partmap*) echo gpt ;;
*abstraction*) ;;
*hints*) ;;
*compatibility_hint*) echo hd0,gpt2 ;;
*--target=fs|*--target=fs\ *) echo ext2 ;;
*--target=device*) echo /dev/vda2 ;;
esac
EOT
chmod 755 "$root/usr/sbin/grub-probe"
mkdir -p "$root/dev/disk/by-uuid" "$root/boot/grub"
touch "$root/dev/disk/by-uuid/$ROOT_UUID"
chroot "$root" update-grub
rm -r "$root/dev/disk"
mv "$root/usr/sbin/grub-probe.real" "$root/usr/sbin/grub-probe"
grep -q "root=UUID=$ROOT_UUID" "$root/boot/grub/grub.cfg"

# Documentation in no one's hands, as the smaller cloud images leave it out (copyright files stay).
find "$root/usr/share/doc" -type f ! -name copyright -delete
rm -rf "$root/usr/share/man" "$root/usr/share/info" "$root/usr/share/locale"
