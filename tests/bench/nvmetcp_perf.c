/* A load generator for an NVMe/TCP target, as iscsi-perf is one for iSCSI: one connection, one thread, reads only.
 *
 *   nvmetcp_perf HOST PORT SUBNQN HOSTNQN DEPTH BYTES SECONDS random|sequential
 *
 * Prints one line: "<operations per second> <MB/s>" (10^6 bytes). Exits non-zero with a sentence on any error.
 * Source of the layouts: NVMe/TCP transport 1.0, NVMe-oF 1.1.
 */
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { ICREQ = 0, CAPSULE_CMD = 4, CAPSULE_RESP = 5, C2H_DATA = 7, SUCCESS = 8 };
enum { MAX_DEPTH = 128, RX_SIZE = 4 << 20 };

static uint8_t rx[RX_SIZE];
static size_t rx_have;

static void die(const char *what)
{
	fprintf(stderr, "nvmetcp_perf: %s%s%s\n", what, errno ? ": " : "", errno ? strerror(errno) : "");
	exit(1);
}

static void put16(uint8_t *p, uint16_t v) { memcpy(p, &v, 2); }
static void put32(uint8_t *p, uint32_t v) { memcpy(p, &v, 4); }
static void put64(uint8_t *p, uint64_t v) { memcpy(p, &v, 8); }
static uint16_t get16(const uint8_t *p) { uint16_t v; memcpy(&v, p, 2); return v; }
static uint32_t get32(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return v; }
static uint64_t get64(const uint8_t *p) { uint64_t v; memcpy(&v, p, 8); return v; }

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void send_all(int fd, const uint8_t *data, size_t size)
{
	while (size) {
		ssize_t n = send(fd, data, size, MSG_NOSIGNAL);
		if (n < 0)
			die("send");
		data += n;
		size -= n;
	}
}

static void recv_exactly(int fd, uint8_t *data, size_t size)
{
	while (size) {
		ssize_t n = recv(fd, data, size, 0);
		if (n <= 0)
			die("the target closed the connection");
		data += n;
		size -= n;
	}
}

/* A command capsule around an empty entry; returns the entry. */
static uint8_t *capsule(uint8_t *p, uint8_t opcode, uint16_t cid, uint32_t data)
{
	memset(p, 0, 72);
	p[0] = CAPSULE_CMD;
	p[2] = 72;
	p[3] = data ? 72 : 0;
	put32(p + 4, 72 + data);
	p[8] = opcode;
	p[9] = 0x40; /* SGL */
	put16(p + 10, cid);
	return p + 8;
}

static uint64_t complete(int fd)
{
	uint8_t p[24];
	recv_exactly(fd, p, 24);
	if (p[0] != CAPSULE_RESP)
		die("unexpected PDU during set-up");
	if (get16(p + 22) >> 1)
		fprintf(stderr, "status %#x\n", get16(p + 22) >> 1), die("the target refuses a set-up command");
	return get64(p + 8);
}

/* A TCP connection made into queue `qid`; returns the socket. */
static int open_queue(const char *host, const char *port, const char *subnqn, const char *hostnqn, int qid,
		      uint16_t *cntlid)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
	uint8_t p[72 + 1024], *sqe;
	int one = 1, fd;

	if (getaddrinfo(host, port, &hints, &found))
		die("no such host");
	fd = socket(found->ai_family, SOCK_STREAM, 0);
	if (fd < 0 || connect(fd, found->ai_addr, found->ai_addrlen))
		die("connect");
	freeaddrinfo(found);
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);

	memset(p, 0, 128);
	p[2] = 128;
	put32(p + 4, 128);
	send_all(fd, p, 128);
	recv_exactly(fd, p, 128);

	memset(p, 0, sizeof p);
	sqe = capsule(p, 0x7f, 0, 1024);
	sqe[4] = 1; /* Connect */
	put32(sqe + 32, 1024);
	sqe[39] = 0x01; /* offset into the capsule */
	put16(sqe + 42, qid);
	put16(sqe + 44, qid ? MAX_DEPTH - 1 : 31);
	memset(p + 72, 0x42, 16);
	put16(p + 72 + 16, qid ? *cntlid : 0xffff);
	strncpy((char *)p + 72 + 256, subnqn, 255);
	strncpy((char *)p + 72 + 512, hostnqn, 255);
	send_all(fd, p, sizeof p);
	*cntlid = complete(fd);
	return fd;
}

static void admin(int fd, uint8_t fctype, uint32_t cdw10, uint32_t cdw11, uint64_t value)
{
	uint8_t p[72], *sqe = capsule(p, 0x7f, 1, 0);
	sqe[4] = fctype;
	put32(sqe + 40, cdw10);
	put32(sqe + 44, cdw11);
	put64(sqe + 48, value);
	send_all(fd, p, 72);
	complete(fd);
}

static uint64_t namespace_blocks(int fd, uint32_t *block)
{
	uint8_t p[72], page[4096], *sqe = capsule(p, 0x06, 2, 0);
	put32(sqe + 4, 1);
	put32(sqe + 32, sizeof page);
	sqe[39] = 0x5a;
	send_all(fd, p, 72);
	recv_exactly(fd, p, 24);
	if (p[0] != C2H_DATA)
		die("Identify Namespace failed");
	recv_exactly(fd, page, sizeof page);
	if (!(p[1] & SUCCESS))
		complete(fd);
	*block = 1u << page[130];
	return get64(page);
}

static uint64_t seed = 88172645463325252ull;

static uint64_t next_random(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	return seed ^= seed << 17;
}

int main(int argc, char **argv)
{
	static uint8_t tx[MAX_DEPTH * 72];
	uint16_t cntlid = 0;
	uint32_t block;
	uint64_t blocks, at = 0, done = 0;

	if (argc != 9)
		die("HOST PORT SUBNQN HOSTNQN DEPTH BYTES SECONDS random|sequential");
	int depth = atoi(argv[5]), random = !strcmp(argv[8], "random");
	uint32_t bytes = atoi(argv[6]);
	double seconds = atof(argv[7]), start;
	if (depth < 1 || depth >= MAX_DEPTH)
		die("DEPTH is 1 to 127");

	int control = open_queue(argv[1], argv[2], argv[3], argv[4], 0, &cntlid);
	admin(control, 0, 0, 0x14, 0x460001); /* CC: enable */
	blocks = namespace_blocks(control, &block);
	int fd = open_queue(argv[1], argv[2], argv[3], argv[4], 1, &cntlid);
	uint32_t per = bytes / block;
	uint64_t slots = blocks / per;

	size_t queued = 0;
	for (int i = 0; i < depth; i++)
		put16(tx + queued++ * 2, i); /* CIDs to send; overwritten below */
	uint16_t free_cids[MAX_DEPTH];
	memcpy(free_cids, tx, depth * 2);

	start = now();
	while (now() - start < seconds) {
		for (size_t i = 0; i < queued; i++) {
			uint8_t *sqe = capsule(tx + i * 72, 0x02, free_cids[i], 0);
			put32(sqe + 4, 1);
			put32(sqe + 32, bytes);
			sqe[39] = 0x5a;
			put64(sqe + 40, (random ? next_random() % slots : at++ % slots) * per);
			put32(sqe + 48, per - 1);
		}
		send_all(fd, tx, queued * 72);
		queued = 0;
		while (!queued) {
			ssize_t n = recv(fd, rx + rx_have, RX_SIZE - rx_have, 0);
			if (n <= 0)
				die("the target closed the connection");
			rx_have += n;
			size_t p = 0;
			while (rx_have - p >= 24) {
				uint32_t plen = get32(rx + p + 4);
				if (rx_have - p < plen)
					break;
				if (rx[p] == CAPSULE_RESP) {
					if (get16(rx + p + 22) >> 1)
						die("a read failed");
					free_cids[queued++] = get16(rx + p + 20);
				} else if (rx[p] != C2H_DATA) {
					die("unexpected PDU");
				} else if (rx[p + 1] & SUCCESS) {
					free_cids[queued++] = get16(rx + p + 8);
				}
				p += plen;
			}
			memmove(rx, rx + p, rx_have - p);
			rx_have -= p;
		}
		done += queued;
	}
	double took = now() - start;
	printf("%.0f %.1f\n", done / took, done * (double)bytes / took / 1e6);
	close(fd);
	close(control);
	return 0;
}
