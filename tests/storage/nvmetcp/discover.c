/* Prints the discovery log of a connected discovery controller: DEVICE → "subnqn traddr trsvcid" a line.
 * For a guest without nvme-cli. Layout: NVMe-oF 1.1, section 5.3; ioctl: linux/nvme_ioctl.h. */
#include <fcntl.h>
#include <linux/nvme_ioctl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

int main(int argc, char **argv)
{
	static uint8_t log[8192];
	struct nvme_admin_cmd cmd = {.opcode = 0x02, .addr = (uintptr_t)log, .data_len = sizeof log};
	int fd = argc == 2 ? open(argv[1], O_RDWR) : -1;

	cmd.cdw10 = 0x70 | (sizeof log / 4 - 1) << 16;
	if (fd < 0 || ioctl(fd, NVME_IOCTL_ADMIN_CMD, &cmd)) {
		perror("discover");
		return 1;
	}
	for (uint8_t i = 1; i <= log[8] && i < 8; i++) {
		char *entry = (char *)log + 1024 * i;
		printf("DISCOVERED %s %.*s %.*s\n", entry + 256, (int)strcspn(entry + 512, " "), entry + 512,
		       (int)strcspn(entry + 32, " "), entry + 32);
	}
	return 0;
}
