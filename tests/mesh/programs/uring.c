/* Connects to HOST PORT (IPv4) by io_uring, so without a connect(2) of its own; says hello and prints the answer. */
#include <arpa/inet.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv) {
	struct io_uring_params params = {0};
	struct sockaddr_in to = {.sin_family = AF_INET};
	char answer[64] = "";
	if (argc < 3 || inet_pton(AF_INET, argv[1], &to.sin_addr) != 1) return 2;
	to.sin_port = htons(atoi(argv[2]));
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	int ring = syscall(SYS_io_uring_setup, 1, &params);
	if (ring < 0) { printf("{\"ring\":\"unsupported\"}\n"); return 0; }
	size_t size = params.sq_off.array + params.sq_entries * sizeof(unsigned);
	size_t completions = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
	if (completions > size) size = completions;
	char *queue = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
	struct io_uring_sqe *entry = mmap(0, params.sq_entries * sizeof *entry, PROT_READ | PROT_WRITE, MAP_SHARED, ring,
	                                  IORING_OFF_SQES);
	if (queue == MAP_FAILED || entry == MAP_FAILED) { perror("mmap"); return 1; }
	memset(entry, 0, sizeof *entry);
	entry->opcode = IORING_OP_CONNECT;
	entry->fd = fd;
	entry->addr = (unsigned long)&to;
	entry->off = sizeof to;
	((unsigned *)(queue + params.sq_off.array))[0] = 0;
	__atomic_store_n((unsigned *)(queue + params.sq_off.tail), 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, 0, 0) < 0) { perror("enter"); return 1; }
	struct io_uring_cqe *done = (void *)(queue + params.cq_off.cqes);
	if (done->res == 0 && write(fd, "hello", 5) == 5 && read(fd, answer, sizeof answer - 1) < 0) perror("read");
	printf("{\"ring\":\"ok\",\"connect\":%d,\"received\":\"%s\"}\n", done->res, answer);
	return 0;
}
