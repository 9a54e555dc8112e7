/* Connects to HOST PORT and prints what it sees of both ends, and what the server answered. */
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void text(const struct sockaddr_storage *address, socklen_t length, char *out, size_t size) {
	char host[64], port[8];
	getnameinfo((const struct sockaddr *)address, length, host, sizeof host, port, sizeof port,
	            NI_NUMERICHOST | NI_NUMERICSERV);
	snprintf(out, size, strchr(host, ':') ? "[%s]:%s" : "%s:%s", host, port);
}

int main(int argc, char **argv) {
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST}, *found;
	struct sockaddr_storage own, peer;
	socklen_t own_length = sizeof own, peer_length = sizeof peer;
	char answer[4096] = "", own_text[80], peer_text[80];
	size_t used = 0;
	ssize_t got;
	if (argc < 3 || getaddrinfo(argv[1], argv[2], &hints, &found)) return 2;
	int fd = socket(found->ai_family, SOCK_STREAM, 0);
	if (connect(fd, found->ai_addr, found->ai_addrlen)) { perror("connect"); return 1; }
	if (getsockname(fd, (struct sockaddr *)&own, &own_length)) { perror("getsockname"); return 1; }
	if (getpeername(fd, (struct sockaddr *)&peer, &peer_length)) { perror("getpeername"); return 1; }
	while (used + 1 < sizeof answer && (got = read(fd, answer + used, sizeof answer - used - 1)) > 0) used += got;
	text(&own, own_length, own_text, sizeof own_text);
	text(&peer, peer_length, peer_text, sizeof peer_text);
	printf("{\"getsockname\":\"%s\",\"getpeername\":\"%s\",\"server\":%s}\n", own_text, peer_text, answer);
	return 0;
}
